"""Options that every model of this package has next to those of its architecture: the hooks read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from torchscale_fairseq.core.layers.lora import ALL, TARGETS


@dataclass
class ModelOptions(FairseqDataclass):
    """Options of the hooks, which every model of this package has."""

    moe_checkpoint_format: ChoiceEnum(["merged", "sharded"]) = field(  # type: ignore[valid-type]
        default="merged",
        metadata={
            "help": (
                "merged: write one checkpoint file, which does not depend on the number of processes; sharded: each "
                "process writes its experts to a file next to it, for models larger than one machine's memory "
                "(default: merged)"
            )
        },
    )
    log_norms_interval: int = field(
        default=0,
        metadata={
            "help": (
                "write the norms of each layer's gradients and updates to --tensorboard-logdir (run norms) every N "
                "updates; 0: never (default: 0)"
            )
        },
    )
    peak_tflops: Optional[float] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": (
                "peak rate of one device in TFLOP/s, by which the log divides the rate of training to give mfu, the "
                "model FLOPs utilisation (default: known for common GPUs)"
            )
        },
    )
    checkpoint_format: Optional[ChoiceEnum(["merged", "sharded"])] = field(  # type: ignore[valid-type]  # noqa: UP045
        default=None,
        metadata={
            "help": (
                "format of checkpoints with --ddp-backend fully_sharded. sharded: every process writes its slices of "
                "the model to a folder of torch.distributed.checkpoint; merged: the first process writes the whole "
                "model to one file (default: sharded)"
            )
        },
    )
    async_checkpoint: bool = field(
        default=False,
        metadata={
            "help": "write sharded checkpoints in the background, from a copy in host memory, while training continues"
        },
    )
    fsdp_shard_size: int = field(
        default=0,
        metadata={
            "help": (
                "with --ddp-backend fully_sharded, number of processes that shard one copy of the model (hybrid "
                "sharding); the other processes shard further copies in groups of this size; 0: all processes shard "
                "one copy (default: 0)"
            )
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
    lora_rank: int = field(
        default=0,
        metadata={
            "help": (
                "train low-rank adapters of this rank next to linear layers, and nothing else, from "
                "--finetune-from-model; 0: train the model (default: 0)"
            )
        },
    )
    lora_alpha: float = field(
        default=16.0,
        metadata={"help": "scale of the adapters' output: it is multiplied by lora_alpha / lora_rank (default: 16)"},
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout of the adapters' input (default: 0)"})
    lora_targets: str = field(
        default="q_proj,v_proj",
        metadata={
            "help": (
                f"names of the linear layers that get adapters, separated by commas, among {', '.join(TARGETS)}; or "
                f"{ALL} (default: q_proj,v_proj)"
            )
        },
    )
    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": (
                "multiply the learning rate of layer i of L by this to the power of L + 1 - i, and that of embeddings "
                "by this to the power of L + 1, as in fine-tuning BEiT; in a model with a decoder, of the encoder's "
                "layers; 1: train all alike (default: 1)"
            )
        },
    )


def model_options(model: Any) -> ModelOptions:
    """The values of these options, which models of others lack: these have the defaults.

    Args:
        model: a model's part of fairseq's configuration, as an object or a mapping.
    """
    values = model if isinstance(model, Mapping) else vars(model)
    return ModelOptions(**{f.name: values.get(f.name, f.default) for f in fields(ModelOptions)})
