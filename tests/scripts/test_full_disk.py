"""Scripts that prepare data, on a disk that is full: one sentence, nothing half written, and success with more room."""

import random
import shlex
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from tests.data.corpora import made_line
from tests.fairseq_cli import REPOSITORY
from tests.scripts.in_process import run_script
from tests.small_disk import fill, small_disk

SCRIPTS = REPOSITORY / "scripts/data"
COMMANDS = {
    "draw_survival.py": "{disk}/made --train 8 --valid 2 --img-size 64",
    "draw_details.py": "{disk}/made --train 4 --valid 2 --img-size 256",
    "cldr_corpus.py": "{disk}/made --train-pairs 300 --valid-pairs 6 --test-pairs 6",
    "train_tokenizer.py": "{text} --output {disk}/made --vocab-size 390 --workers 1",
    "shard_corpus.py": "{disk}/made --train {text} --test {text} --workers 1",
    "prepare_language.py": "--input {text} --valid-lines 9 --test-lines 9 --output {disk}/made --vocab-size 390",
}
ROOM = {"draw_details.py": 1 << 14, "prepare_language.py": 1 << 17, "shard_corpus.py": 1 << 16}
"""Bytes that are too few for what a script writes; otherwise a page of 4,096."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = random.Random(1)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{made_line(generator)}\n" for _ in range(1500)))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("script", COMMANDS)
def test_scripts_go_on_after_room_is_made(script: str, text: Path, tmp_path: Path) -> None:
    def run(disk: Path) -> tuple[int, str]:
        done = run_script(SCRIPTS / script, *shlex.split(COMMANDS[script].format(text=text, disk=disk)))
        return done.returncode, done.last_line

    def prepare(disk: Path) -> None:
        if script == "shard_corpus.py":
            words = COMMANDS["train_tokenizer.py"].format(text=text, disk=disk)
            run_script(SCRIPTS / "train_tokenizer.py", *shlex.split(words)).check()

    with small_disk(tmp_path, "4m") as disk:
        prepare(disk)
        before = contents(disk)
        filler = fill(disk, ROOM.get(script, 1 << 12))
        code, last_line = run(disk)
        assert code in (1, 2) and "No space left on device" in last_line and "make room and run this again" in last_line
        filler.unlink()
        left = contents(disk)
        assert not any(".part" in name for name in left)
        assert run(disk)[0] == 0
        made = contents(disk / "made")
        assert {name.removeprefix("made/") for name in left} <= set(made)
        assert all(made[name.removeprefix("made/")] == content for name, content in left.items())
        assert len(made) > len(before)
