"""scripts/retention_forms.py: a RetNet's continuations through each form of retention."""

import random
import shlex
from pathlib import Path

import pytest

from tests.fairseq_cli import REPOSITORY, Finished, run_beside_fairseq, run_fairseq
from tests.tools.in_process import run_tool

SCRIPT = REPOSITORY / "scripts/retention_forms.py"
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
TINY = shlex.split(
    "--task language_modeling --optimizer adam --lr 1e-2 --batch-size 32 --num-workers 0 --tokens-per-sample 16 "
    "--sample-break-mode eos --required-batch-size-multiple 1 --log-format simple --no-epoch-checkpoints --cpu"
)
RETNET = shlex.split(
    "--arch retnet_small --decoder-layers 1 --decoder-embed-dim 32 --decoder-value-embed-dim 48 "
    "--decoder-ffn-embed-dim 48 --max-update 80"
)
OTHER = shlex.split(
    "--arch gpt_deepnorm_small --decoder-layers 1 --decoder-embed-dim 32 --decoder-ffn-embed-dim 64 --max-update 1"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds text, data and a model that has learnt which word follows which: a cycle of eight."""
    folder = tmp_path_factory.mktemp("forms")
    generator = random.Random(1)
    for split, size in (("train", 500), ("valid", 8), ("test", 8)):
        starts = [generator.randrange(len(WORDS)) for _ in range(size)]
        lines = [" ".join((WORDS * 2)[start : start + 7]) + "." for start in starts]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    splits = [word for split in ("train", "valid", "test") for word in (f"--{split}", folder / f"{split}.txt")]
    run_tool("data", "prepare-language", *splits, "--output", folder / "data", "--vocab-size", 285).check()
    run_fairseq("train", [folder / "data", *TINY, *RETNET, "--save-dir", folder / "retnet"]).check()
    return folder


def forms(folder: Path, run: str, text: str, length: int, before: str = "") -> Finished:
    """Runs the script where fairseq is imported already, after some lines of Python."""
    (folder / "input").write_text(f"{text}\n")
    words = [SCRIPT, "--checkpoint", folder / run / "checkpoint_last.pt", "--data", folder / "data"]
    words += ["--input", folder / "input", "--length", length]
    lines = ["import runpy, sys", before, f"sys.argv = {[str(word) for word in words]}"]
    return run_beside_fairseq("\n".join([*lines, "runpy.run_path(sys.argv[0], run_name='__main__')"]), plugin=False)


def test_forms_agree(folder: Path) -> None:
    printed = forms(folder, "retnet", "gamma delta", 5).check().stdout.splitlines()
    lines = [line for line in printed if " | INFO | " not in line]
    assert lines[0].startswith("gamma delta epsilon zeta eta theta alpha")
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["chunkwise", "recurrent"]
    assert all("same tokens as parallel" in line for line in lines[1:])


def test_a_form_that_differs_is_found(folder: Path) -> None:
    wrong = "import torchscale_fairseq.core.ops.retention_step as f; right = f.recurrent_retention\n"
    wrong += "f.recurrent_retention = lambda q, *rest, **options: right(-q, *rest, **options)"
    done = forms(folder, "retnet", "gamma delta", 5, before=wrong)
    assert done.returncode == 1
    assert "recurrent: other tokens as parallel" in done.stdout


def test_refuses_a_model_without_retention(folder: Path) -> None:
    run_fairseq("train", [folder / "data", *TINY, *OTHER, "--save-dir", folder / "other"]).check()
    done = forms(folder, "other", "gamma", 5)
    assert done.returncode == 1
    assert done.last_line.startswith("retention_forms.py: ") and "has no retention" in done.last_line
