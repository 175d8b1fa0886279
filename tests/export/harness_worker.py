"""A process of several that evaluate a checkpoint together; the first one writes the results.

The harness distributes texts over GPUs by itself. Here it is handed processes without any.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
from accelerate import Accelerator
from lm_eval.tasks import TaskManager

from torchscale_fairseq.evaluation.harness import CheckpointLM


def main(checkpoint: str, folder: str, output: str) -> None:
    harness: Any = CheckpointLM(checkpoint, data=f"{folder}/words", device="cpu", batch_size=2)
    harness.accelerator = accelerator = Accelerator(cpu=True)
    harness._rank, harness._world_size = accelerator.process_index, accelerator.num_processes
    manager = TaskManager(include_path=f"{folder}/tasks", include_defaults=False)
    tasks = ["choices", "rolling", "answers"]
    found = lm_eval.simple_evaluate(harness, tasks=tasks, task_manager=manager, log_samples=True, bootstrap_iters=0)
    if found is not None:
        ordered = {task: sorted(found["samples"][task], key=lambda sample: sample["doc_id"]) for task in tasks}
        samples = {task: [sample["filtered_resps"] for sample in ordered[task]] for task in tasks}
        Path(output).write_text(json.dumps({"processes": accelerator.num_processes, "samples": samples}))


if __name__ == "__main__":
    main(*sys.argv[1:])
