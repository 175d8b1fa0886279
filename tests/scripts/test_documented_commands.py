"""Every command of the documents runs, in the order in which they stand, on tiny data in a folder of its own."""

import json
import random
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.documented_commands import commands, run
from tests.documents import RUNNABLE
from tests.fairseq_cli import REPOSITORY
from tests.plugin.drawings import make_folders
from tests.tools.families import Family, build
from tests.tools.made_text import write_texts
from tests.tools.official_checkpoints import case_of, official_checkpoint, write_dictionaries


def make_workplace(folder: Path) -> Path:
    """What the documents take for granted: text, labelled text, captioned images, slides, weights, a checkpoint."""
    shutil.copytree(REPOSITORY / "scripts", folder / "scripts")
    (folder / "scripts/setup.sh").write_text("#!/usr/bin/env bash\n")  # which has run: the tests need it
    (folder / "torchscale_fairseq").symlink_to(REPOSITORY / "torchscale_fairseq")
    (folder / "data").mkdir()
    (folder / "data/python.bin").symlink_to(folder / "data/text")  # quickstart_lm.sh makes it of other text
    generator = random.Random(1)
    write_texts(folder / "text", generator)
    _label_texts(folder)
    _write_pictures(folder / "data/pictures", generator)
    make_folders(folder / "data/slides", train=2, valid=2)
    _, longvit = build(Family("longvit_small", "image_classification", {"img_size": 64, "patch_size": 32}))
    torch.save({"model": longvit.state_dict()}, folder / "longvit_small_patch32_1024.pth")
    write_dictionaries(folder, case_of("fs_lm"))
    torch.save(official_checkpoint(case_of("fs_lm"), folder), folder / "official.pt")
    return folder


def _label_texts(folder: Path) -> None:
    for split in ("train", "valid", "test"):
        lines = (folder / f"text/{split}.txt").read_text().splitlines()
        labelled = [f"{number % 2}\t{line}" for number, line in enumerate(lines)]
        (folder / f"{split}.tsv").write_text("\n".join(labelled) + "\n")


def _write_pictures(folder: Path, generator: random.Random) -> None:
    from PIL import Image

    text = (folder.parent.parent / "text/train.txt").read_text().splitlines()
    (folder / "images").mkdir(parents=True)
    for split, captions in (("train", text[:100]), ("valid", text[100:110])):
        names = [f"images/{split}{number}.png" for number in range(len(captions))]
        for name in names:
            Image.new("RGB", (20, 20), tuple(generator.choices(range(256), k=3))).save(folder / name)
        pairs = [{"image": name, "caption": caption} for name, caption in zip(names, captions, strict=True)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_workplace(tmp_path / "workplace")
    monkeypatch.setenv("VENV", sys.prefix)
    failed, ran = [], 0
    for command in (command for document in RUNNABLE for command in commands(document)):
        if "plot-expert-load" in command.text and find_spec("matplotlib") is None:
            continue
        done = run(command.text, folder)
        ran += 1
        if done.returncode:
            failed.append(f"{command.where}: {command.text}\n    {done.last_line}")
        if "--save-dir runs/text" in command.text:  # the next part evaluates a model that is trained in the same way
            run(command.text.replace("gpt_deepnorm", "gpt_xpos").replace("runs/text", "runs/text-xpos"), folder).check()
    assert not failed, "\n".join(failed)
    assert ran > 35
