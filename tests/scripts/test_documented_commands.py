"""Every command of the documents runs in a new environment, in a checkout of its own, on tiny data."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.documented_commands import Checkout, Command, commands
from tests.documents import DOCUMENTS, RUNNABLE
from tests.fairseq_cli import REPOSITORY
from tests.plugin.drawings import make_folders
from tests.tools.families import Family, build
from tests.tools.made_text import write_texts
from tests.tools.official_checkpoints import case_of, official_checkpoint, write_dictionaries

DOCS = REPOSITORY / "docs"
CLAIMS = sorted((DOCS / "claims").glob("*.md"))
FIRST = [DOCS / "quickstart.md", *RUNNABLE]
LEFT_OUT = (DOCS / "slides.md", DOCS / "export.md", DOCS / "evaluation.md", DOCS / "speech.md")
"""Slides need scans, timm and released weights, speech recordings, and evaluation lm-eval and COMET;
tests/export/test_guide.py runs export."""
GUIDES = [*FIRST, *(path for path in DOCUMENTS if DOCS in path.parents and path not in (*CLAIMS, *FIRST, *LEFT_OUT))]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A new environment, and the data that the documents take for granted: text, labelled text, captioned images,
    JSON lines, slides, weights, a checkpoint."""
    made = Checkout.make(tmp_path_factory.mktemp("new") / "torchscale_fairseq")
    folder, generator = made.folder, random.Random(1)
    write_texts(folder / "text", generator)
    _label_texts(folder)
    _write_pictures(folder / "data/pictures", generator)
    _write_documents(folder / "data/web", folder / "text")
    make_folders(folder / "data/slides", train=2, valid=2)
    _, longvit = build(Family("longvit_small", "image_classification", {"img_size": 64, "patch_size": 32}))
    torch.save({"model": longvit.state_dict()}, folder / "longvit_small_patch32_1024.pth")
    write_dictionaries(folder, case_of("fs_lm"))
    torch.save(official_checkpoint(case_of("fs_lm"), folder), folder / "official.pt")
    return made


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


def _write_documents(folder: Path, text: Path) -> None:
    import sentencepiece

    folder.mkdir(parents=True)
    for split in ("train", "valid"):
        lines = (text / f"{split}.txt").read_text().splitlines()
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"content": line}) + "\n" for line in lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text / "train.txt"), model_prefix=str(folder / "sentencepiece.bpe"), vocab_size=100, minloglevel=2
    )


def walk(documents: Sequence[Path], checkout: Checkout) -> list[str]:
    """Run the commands of documents in order, and give a line for each that fails. A page may use files that a later
    page makes, so failed commands run again as long as one more of them succeeds."""
    waiting = [command for document in documents for command in commands(document)]
    while waiting:
        failed: list[tuple[Command, str]] = []
        for command in waiting:
            done = checkout.run_tiny(command.text)
            if done.returncode:
                failed.append((command, done.last_line))
            print(f"{done.returncode:4} {command.where}: {command.text}", flush=True)
            if command.text.endswith("--save-dir runs/text"):  # a model that the next part evaluates
                xpos = command.text.replace("gpt_deepnorm", "gpt_xpos").replace("runs/text", "runs/text-xpos")
                checkout.run_tiny(xpos).check()
        if len(failed) == len(waiting):
            return [f"{command.where}: {command.text}\n    {line}" for command, line in failed]
        waiting = [command for command, _ in failed]
    return []


@pytest.mark.slow
def test_guides(checkout: Checkout) -> None:
    assert sum(len(commands(document)) for document in GUIDES) > 40
    failed = walk(GUIDES, checkout)
    assert not failed, "\n".join(failed)


@pytest.mark.slow
def test_claims(checkout: Checkout) -> None:
    assert sum(len(commands(document)) for document in CLAIMS) > 8
    failed = walk(CLAIMS, checkout)
    assert not failed, "\n".join(failed)
