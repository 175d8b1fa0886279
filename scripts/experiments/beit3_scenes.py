"""Fine-tune BEiT-3 on drawn scenes: questions, pairs of images, captions and retrieval.

Each model is trained by fairseq-train from random values, and judged by torchscale-fairseq predict on scenes that it
has not seen. Other models see the text alone, or the image alone, and show how far that goes.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from scripts.experiments import common
from scripts.experiments.scenes import write_scenes
from torchscale_fairseq.core.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CRITERIONS = {
    "visual_question_answering": "visual_question_answering",
    "visual_reasoning": "image_classification",
    "image_captioning": "masked_lm",
    "image_text_retrieval": "image_text_contrastive",
}
FIGURES = {
    "visual_question_answering": "vqa_score",
    "visual_reasoning": "accuracy",
    "image_captioning": "exact_match",
    "image_text_retrieval": "text_to_image_r1",
}
HIDDEN = {"image": "text alone", "text": "image alone", "": "both"}


@dataclass(frozen=True)
class Scenes:
    """One model."""

    task: str
    hide: str
    """"image" or "text" for a model that does not see it; "" for both."""
    lines: int
    """To train on."""
    updates: int
    seed: int


def runs(small: bool, seed: int) -> Sequence[Scenes]:
    """All tasks; those with a question or a sentence also with the image alone."""
    lines, updates = (2000, 400) if small else (8000, 3000)
    return [
        Scenes(task, hide, lines, updates, seed)
        for task in ("visual_reasoning", "visual_question_answering", "image_captioning", "image_text_retrieval")
        for hide in (("",) if small else ("", "image", "text") if "visual" in task else ("", "image"))
    ]


def measure(run: Scenes, _: common.Text, device: str) -> common.Result:
    """Draw scenes, train, and predict for others."""
    with TemporaryDirectory() as folder:
        data = write_scenes(Path(folder) / "data", run.task, hide=run.hide, seed=run.seed, train=run.lines, valid=200)
        _tool(
            "data", "train-tokenizer", data / "texts.txt", "--output", data, "--model-type", "bpe", "--vocab-size", 330
        )
        _command([sys.executable, "-m", "fairseq_cli.train", *training(run, data, Path(folder) / "run", device)])
        predicted = ["--output", Path(folder) / "predicted", "--device", device]
        printed = _tool(
            "predict", "--checkpoint", Path(folder) / "run" / "checkpoint_last.pt", data / "valid.jsonl", *predicted
        )
    return {name: float(value) for name, value in re.findall(r"^(\w+)\t([\d.]+)$", printed, re.MULTILINE)}


def training(run: Scenes, data: Path, folder: Path, device: str) -> list[str]:
    """Arguments of fairseq-train: two layers of width 64."""
    words = f"{data} --user-dir {common.ROOT / 'torchscale_fairseq'} --task {run.task} --save-dir {folder}"
    words += f" --criterion {CRITERIONS[run.task]} --arch beit3_small --encoder-layers 2 --encoder-embed-dim 64"
    words += " --encoder-ffn-embed-dim 256 --img-size 32 --patch-size 8 --max-source-positions 24 --batch-size 32"
    words += " --optimizer adam --adam-betas (0.9,0.98) --lr 1e-3 --lr-scheduler polynomial_decay --warmup-updates 50"
    words += f" --total-num-update {run.updates} --max-update {run.updates} --clip-norm 1.0 --seed {run.seed}"
    words += f" --num-workers {int(device != 'cpu')} --no-epoch-checkpoints --disable-validation --log-format simple"
    return [*words.split(), *(["--cpu"] if device == "cpu" else [])]


def _tool(*words: Any) -> str:
    return _command([sys.executable, "-m", "torchscale_fairseq", *map(str, words)])


def _command(words: Sequence[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=common.ROOT)
    if done.returncode:
        raise InputError(f"{' '.join(words[:4])} failed: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def draw(report: common.Result) -> "Figure":
    """A group of bars per task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    tasks = list(FIGURES)
    for place, (hide, label) in enumerate(HIDDEN.items()):
        shown = [run for run in report["runs"] if run["hide"] == hide]
        axes.bar(
            [tasks.index(run["task"]) + 0.27 * (place - 1) for run in shown],
            [run[FIGURES[run["task"]]] for run in shown],
            0.25,
            label=label,
            color=list(common.COLOURS.values())[place + 1],
        )
    axes.set_xticks(range(len(tasks)), [f"{task.replace('_', ' ')}\n{FIGURES[task]}" for task in tasks], fontsize=7)
    axes.set_ylabel("%")
    axes.legend()
    return figure


if __name__ == "__main__":
    common.main(common.Experiment("beit3_scenes", __doc__, runs=runs, measure=measure, draw=draw, reads_text=False))
