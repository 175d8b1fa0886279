"""Subcommands that prepare data, on a disk that is full: one sentence, nothing half written, success with more room."""

import random
import shlex
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from tests.data.corpora import made_line
from tests.small_disk import fill, small_disk
from tests.tools.in_process import run_tool
from tests.tools.preprocessing import preprocessing_in_server

COMMANDS = {
    "draw-survival": "{disk}/made --train 8 --valid 2 --img-size 64",
    "draw-details": "{disk}/made --train 4 --valid 2 --img-size 256",
    "cldr-corpus": "{disk}/made --train-pairs 300 --valid-pairs 6 --test-pairs 6",
    "train-tokenizer": "{text} --output {disk}/made --vocab-size 390 --workers 1",
    "shard-corpus": "{disk}/made --train {text} --test {text} --workers 1",
    "prepare-language": "--input {text} --valid-lines 9 --test-lines 9 --output {disk}/made --vocab-size 390",
}
ROOM = {"draw-details": 1 << 14, "prepare-language": 1 << 17, "shard-corpus": 1 << 16}
"""Bytes that are too few for what a subcommand writes; otherwise a page of 4,096."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = random.Random(1)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{made_line(generator)}\n" for _ in range(1500)))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_subcommands_resume_after_room_is_made(name: str, text: Path, tmp_path: Path) -> None:
    def run(disk: Path) -> tuple[int, str]:
        with preprocessing_in_server():
            done = run_tool("data", name, *shlex.split(COMMANDS[name].format(text=text, disk=disk)))
        return done.returncode, done.last_line

    def prepare(disk: Path) -> None:
        if name == "shard-corpus":
            words = COMMANDS["train-tokenizer"].format(text=text, disk=disk)
            run_tool("data", "train-tokenizer", *shlex.split(words)).check()

    with small_disk(tmp_path, "4m") as disk:
        prepare(disk)
        before = contents(disk)
        filler = fill(disk, ROOM.get(name, 1 << 12))
        code, last_line = run(disk)
        assert code == 1 and "No space left on device" in last_line and "make room and run this again" in last_line
        filler.unlink()
        left = contents(disk)
        assert not any(".part" in path for path in left)
        assert run(disk)[0] == 0
        made = contents(disk / "made")
        assert {path.removeprefix("made/") for path in left} <= set(made)
        assert all(made[path.removeprefix("made/")] == content for path, content in left.items())
        assert len(made) > len(before)
