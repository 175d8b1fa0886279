"""Checkpoints as fairseq-train writes them, with their whole configuration, but without training."""

from pathlib import Path

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf

from torchscale_fairseq import plugin


def write_untrained(path: Path, *words: object) -> Path:
    """Write the checkpoint of a training of no update.

    Args:
        path: of the checkpoint, in a folder that is made.
        words: of fairseq-train.
    """
    plugin.register()
    args = options.parse_args_and_arch(options.get_training_parser(), [str(word) for word in words])
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(1)
    model = task.build_model(cfg.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model.state_dict(),
        "criterion": None,
        "optimizer_history": [{"num_updates": 0, "lr_scheduler_state": {"best": None}}],
        "task_state": task.state_dict(),
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}, "val_loss": None},
    }
    torch.save(state, path)
    return path
