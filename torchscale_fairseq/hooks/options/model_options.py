"""Options that every model of this package has next to those of its architecture: the hooks read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass


@dataclass
class ModelOptions(FairseqDataclass):
    """Options of the hooks, which every model of this package has."""

    moe_checkpoint_format: ChoiceEnum(["merged", "sharded"]) = field(  # type: ignore[valid-type]
        default="merged",
        metadata={
            "help": (
                "merged: write one checkpoint file, independent of the number of processes; sharded: write the"
                " experts to one file per process next to it, for models larger than one machine's memory "
                "(default: merged)"
            )
        },
    )
    log_norms_interval: int = field(
        default=0,
        metadata={
            "help": (
                "log the norms of each layer's gradient and update to TensorBoard (run norms) every N updates; "
                "0: never (default: 0)"
            )
        },
    )
    peak_tflops: Optional[float] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": (
                "peak rate of one device in TFLOP/s, to which mfu in the log is relative (default: the rate of"
                " common GPUs is known)"
            )
        },
    )
    checkpoint_format: Optional[ChoiceEnum(["merged", "sharded"])] = field(  # type: ignore[valid-type]  # noqa: UP045
        default=None,
        metadata={
            "help": "with --ddp-backend fully_sharded, sharded (the default): every process writes its slices to a "
            "folder of torch.distributed.checkpoint; merged: the first process writes all of it to one file"
        },
    )
    async_checkpoint: bool = field(
        default=False,
        metadata={"help": "training goes on while a sharded checkpoint is written, from a copy in host memory"},
    )
    fsdp_shard_size: int = field(
        default=0,
        metadata={
            "help": "with --ddp-backend fully_sharded, processes that hold one copy of the model together, of which "
            "there are replicas then (hybrid sharding); 0: all processes"
        },
    )
    seq_parallel: bool = field(
        default=False,
        metadata={"help": "split each sequence over several processes; only with dilated attention"},
    )
    seq_parallel_size: int = field(
        default=0,
        metadata={"help": "number of processes that share a sequence with --seq-parallel; 0: all (default: 0)"},
    )


def model_options(model: Any) -> ModelOptions:
    """The values of these options, which models of others lack: these have the defaults.

    Args:
        model: a model's part of fairseq's configuration, as an object or a mapping.
    """
    values = model if isinstance(model, Mapping) else vars(model)
    return ModelOptions(**{f.name: values.get(f.name, f.default) for f in fields(ModelOptions)})
