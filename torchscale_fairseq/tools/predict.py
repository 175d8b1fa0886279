"""Predict with a BEiT-3 that was fine-tuned on images with texts, for every line of an index.

--task visual_question_answering writes the answers as a JSON list of question_id and answer, visual_reasoning lines of
IDENTIFIER,PREDICTION, image_captioning a JSON list of image_id and caption, and image_text_retrieval a JSON list of the
ranks of each text's image and of each image's best text, 0 for the first.

Where the index says what is right, scores are printed. CIDEr and BLEU of captions need pycocoevalcap.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.options import positive
from torchscale_fairseq.tools.progress import progress

EXAMPLE = (
    "torchscale-fairseq predict --checkpoint runs/questions/checkpoint_best.pt data/questions/valid.jsonl \\\n"
    "    --output answers.json"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a fine-tuned model")
    parser.add_argument("index", type=Path, metavar="INDEX", help="a file such as data/questions/valid.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where predictions are written")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of the SentencePiece model (default: the index's folder)"
    )
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="lines at a time (default: 32)")
    parser.add_argument("--device", help="cpu or cuda, where the model runs (default: cuda if there is a GPU)")


def run(options: argparse.Namespace) -> None:
    import torch

    from torchscale_fairseq import plugin

    plugin.register()
    from fairseq import checkpoint_utils

    from torchscale_fairseq.data.images.index import read_index
    from torchscale_fairseq.data.problems import Problems
    from torchscale_fairseq.tasks._joint import JointTask

    data = str(options.data or options.index.parent)
    models, config, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(options.checkpoint)], arg_overrides={"data": data}
    )
    if not isinstance(task, JointTask):
        raise InputError(
            f"{options.checkpoint} was trained with --task {config.task._name}; this command is for models that were "
            "fine-tuned on images with texts"
        )
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    problems = Problems(skip=False)
    dataset = task.dataset_of(read_index(options.index, task.format, problems), problems)
    with torch.no_grad():
        records = task.predict_all(
            [model.eval().to(device) for model in models], _batches(dataset, options.batch_size, device)
        )
    task.write(records, options.output)
    for name, value in task.figures(records, dataset.lines).items():
        print(f"{name}\t{value:.2f}")
    print(f"wrote {options.output}: {len(records)} predictions")


def _batches(dataset: Any, size: int, device: str) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    starts = range(0, len(dataset), size)
    for start in progress(starts, "predicting", "batch", prints=True):
        places = range(start, min(start + size, len(dataset)))
        sample = dataset.collater([dataset[place] for place in places])
        sample["net_input"] = {name: x.to(device) for name, x in sample["net_input"].items()}
        yield sample, dataset.lines[places.start : places.stop]
