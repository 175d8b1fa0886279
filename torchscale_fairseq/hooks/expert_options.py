"""What fairseq's own options may be with experts."""

from typing import Any

from torchscale_fairseq.core.errors import InputError


def prepare_options(cfg: Any, *, several_processes: bool) -> None:
    """Set the options that a model with experts needs, and refuse those that would destroy it.

    Args:
        cfg: fairseq's configuration; changed in place.
        several_processes: experts are held by several processes.

    Raises:
        InputError: the options average or split what is not one set of parameters.
    """
    cfg.common.fp16_no_flatten_grads = True  # flattened, experts could not be told from the rest
    training = cfg.distributed_training
    refused = {
        "--zero-sharding os": (training.zero_sharding != "none", "splits the optimizer's state over processes"),
        "--use-bmuf": (cfg.optimization.use_bmuf, "averages parameters over processes"),
        f"--ddp-backend {training.ddp_backend}": (
            training.ddp_backend in ("slowmo", "slow_mo", "fully_sharded"),
            "averages or splits parameters over processes",
        ),
    }
    if several_processes:
        cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
        refused["--amp"] = (cfg.common.amp, "lets each process skip updates by itself")
        adafactor = getattr(cfg.optimizer, "_name", None) == "adafactor"
        refused["--optimizer adafactor"] = (adafactor, "keeps state that experts share")
    for option, (given, reason) in refused.items():
        if given:
            raise InputError(
                f"{option} {reason}, but processes hold experts of their own (--moe-freq, --moe-expert-count); use "
                f"{_INSTEAD[option.split()[0]]}."
            )


_INSTEAD = {
    "--zero-sharding": "--zero-sharding none",
    "--use-bmuf": "no --use-bmuf",
    "--ddp-backend": "--ddp-backend legacy_ddp or pytorch_ddp",
    "--amp": "--fp16 or --bf16",
    "--optimizer": "--optimizer adam",
}
