"""Retrieval trained by fairseq-train in several processes gives the weights of one process with the whole batch."""

from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from scripts.experiments.scenes import write_scenes
from tests.checkpoints import assert_same_weights
from tests.fairseq_cli import run_fairseq, run_processes
from tests.plugin.shrunk import shrunk
from tests.tools.in_process import run_tool

SGD = ["--optimizer", "sgd", "--lr", "0.1", "--max-update", "2", "--cpu", "--num-workers", "0"]


@pytest.mark.slow
@pytest.mark.parametrize(("lines", "processes"), [(8, 2), (8, 4)])
def test_processes_equal_one(lines: int, processes: int, tmp_path: Path) -> None:
    """Two epochs of one update each, with all lines in its batches; validation gathers the embeddings of all."""
    data = write_scenes(tmp_path / "data", "image_text_retrieval", train=lines, valid=8)
    pieces = ["--output", data, "--model-type", "bpe", "--vocab-size", "290"]
    run_tool("data", "train-tokenizer", data / "texts.txt", *pieces).check()
    words = [data, "--task", "image_text_retrieval", "--criterion", "image_text_contrastive", *shrunk("beit3_small")]
    words += ["--img-size", "32", "--patch-size", "8", *SGD, "--required-batch-size-multiple", "1"]
    run_fairseq("train", [*words, "--batch-size", lines, "--save-dir", tmp_path / "one"]).check()
    words += ["--batch-size", lines // processes, "--save-dir", tmp_path / "several", "--distributed-no-spawn"]
    done = run_processes(processes, "train", [*words, "--distributed-world-size", processes])
    assert "text_to_image_r1" in done.check().output
    assert_same_weights(tmp_path / "one", tmp_path / "several", 1e-6)
