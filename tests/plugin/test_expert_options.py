"""fairseq's own options beside experts."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fairseq")

from fairseq.dataclass import configs

from torchscale_fairseq.hooks.experts.options import prepare_options


def config(**given: Any) -> SimpleNamespace:
    """fairseq's configuration with these options, by section and name."""
    cfg = SimpleNamespace(
        common=configs.CommonConfig(),
        optimization=configs.OptimizationConfig(),
        distributed_training=configs.DistributedTrainingConfig(),
        checkpoint=configs.CheckpointConfig(),
        optimizer=SimpleNamespace(_name="adam"),
    )
    for path, value in given.items():
        section, name = path.split("__")
        name = "_name" if section == "optimizer" else name
        setattr(getattr(cfg, section), name, value)
    return cfg


def test_half_precision_is_not_flattened_and_all_processes_read() -> None:
    cfg = config(common__fp16=True)
    prepare_options(cfg, several_processes=False)
    assert cfg.common.fp16_no_flatten_grads and not cfg.checkpoint.load_checkpoint_on_all_dp_ranks
    prepare_options(cfg, several_processes=True)
    assert cfg.checkpoint.load_checkpoint_on_all_dp_ranks


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("given", "option", "instead"),
    [
        ({"distributed_training__zero_sharding": "os"}, "--zero-sharding os splits", "--zero-sharding none"),
        ({"optimization__use_bmuf": True}, "--use-bmuf averages", "drop --use-bmuf"),
        (
            {"distributed_training__ddp_backend": "slowmo"},
            "--ddp-backend slowmo",
            "legacy_ddp or --ddp-backend pytorch_ddp",
        ),
        ({"common__amp": True}, "--amp lets each process", "--fp16 or --bf16"),
        ({"optimizer__name": "adafactor"}, "--optimizer adafactor keeps", "--optimizer adam"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refused_with_a_reason_and_a_way_out(given: dict[str, Any], option: str, instead: str, several: bool) -> None:
    cfg = config(**given)
    if not several and option.startswith(("--amp", "--optimizer")):
        prepare_options(cfg, several_processes=False)
        return
    with pytest.raises(ValueError, match="moe-expert-count") as error:
        prepare_options(cfg, several_processes=several)
    assert option in str(error.value) and instead in str(error.value)
