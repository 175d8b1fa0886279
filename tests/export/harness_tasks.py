"""Tasks of the evaluation harness over a few texts on disk, one of each kind that it knows."""

import json
from pathlib import Path
from typing import Any

TEXTS = ["w1 w2 w3 w4 w5 w6 w7", "w9 w2", "w4 w4 w4 w8 w19 w0 w3 w3 w11 w12"]
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_target": 0,
        "doc_to_choice": ["w1", "w2 w3", "w4"],
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "w1",
        "generation_kwargs": {"until": ["w7"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path) -> Path:
    """Write the tasks and their texts."""
    folder.mkdir()
    (folder / "texts.json").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for name, task in TASKS.items():
        data = {"data_files": {"test": str(folder / "texts.json")}}
        common = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps(common | task))  # JSON is YAML
    return folder
