"""Checkpoints with adapters, merged."""

from pathlib import Path

from torchscale_fairseq.checkpoints.adapters import ENTRY
from torchscale_fairseq.checkpoints.reading import complete, read_file
from torchscale_fairseq.checkpoints.writing import write_checkpoint
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.lora import is_adapter, merged
from torchscale_fairseq.tools.convert.checkpoint_files import build, model_options


def merge_checkpoint(path: Path, output: Path, base: Path | None = None) -> str:
    """Write the checkpoint; return a sentence about it.

    Args:
        path: of a checkpoint with adapters.
        output: of the file to write.
        base: the checkpoint with the other weights; by default where it was in training.

    Raises:
        InputError: the checkpoint has no adapters, or the base is not there.
    """
    state = read_file(path)
    if not isinstance(state, dict) or not any(map(is_adapter, state.get("model", ()))):
        raise InputError(f"{path} has no adapters; only checkpoints trained with --lora-rank do")
    if base is not None:
        state[ENTRY] = {"absolute": str(base.absolute()), "relative": str(base.absolute())}
    whole, options = complete(state, path), model_options(state, path)
    count = sum(map(is_adapter, whole["model"])) // 2
    parameters = merged(whole["model"], options["lora_alpha"] / options["lora_rank"])
    build({**options, "lora_rank": 0}, parameters, path)
    write_checkpoint(
        {
            **whole,
            "cfg": {**whole["cfg"], "model": {**whole["cfg"]["model"], "lora_rank": 0}},
            "model": parameters,
            "last_optimizer_state": None,
            "extra_state": {},
        },
        output,
    )
    return f"{count} adapters of rank {options['lora_rank']} are in the weights"
