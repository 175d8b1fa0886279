"""Options with --ddp-backend fully_sharded, and the memory that a model takes."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fairseq")

from fairseq.models import MODEL_REGISTRY
from torch import nn

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.fairseq_cli import FEW_UPDATES, REPOSITORY, TINY_LANGUAGE_MODEL, run_fairseq
from tests.plugin.parameter_counts import parameters
from tests.plugin.registered import config_of
from tests.plugin.shrunk import shrunk
from tests.plugin.trainers import make_trainer
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.hooks.sharding.communication import compute_seconds, ddp_traffic, sharded_traffic
from torchscale_fairseq.hooks.sharding.memory import check_fit, parameter_count, preset_memory

SHARDED = ["--ddp-backend", "fully_sharded"]


def test_fairseqs_models_are_sharded_without_fairscale(language_data: Path, tmp_path: Path) -> None:
    arguments = [language_data, *TINY_LANGUAGE_MODEL, *FEW_UPDATES, *SHARDED, "--save-dir", tmp_path, "--cpu"]
    assert "num_updates=4" in run_fairseq("train", arguments).check().output.replace(" ", "").replace(":", "=")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--amp"], "--amp scales losses per process"),
        (["--memory-efficient-bf16"], "--memory-efficient-bf16 has no float32 parameters"),
        (["--zero-sharding", "os"], "--zero-sharding os shards what is sharded already"),
        (["--use-sharded-state"], "--use-sharded-state is fairscale's format"),
        (["--log-norms-interval", "2"], "--log-norms-interval"),
    ],
)
def test_refused_with_a_way_out(flags: list[str], message: str, language_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_trainer(language_data, tmp_path, *SHARDED, *flags)
    assert "--ddp-backend pytorch_ddp" in str(error.value)


def test_a_size_that_does_not_divide_is_named_as_typed(language_data: Path, tmp_path: Path) -> None:
    words = [language_data, "--task", "language_modeling", *shrunk("gpt_magneto_small"), *FEW_UPDATES, *SHARDED]
    done = run_fairseq("train", [*words, "--cpu", "--save-dir", tmp_path, "--fsdp-shard-size", "2"])
    assert done.returncode == 1
    assert "--fsdp-shard-size (2) must divide the number of processes (1); drop --fsdp-shard-size." in done.last_line


@pytest.mark.parametrize("arch", ["gpt_deepnorm", "bert_magneto", "mt_deepnorm", "retnet_base"])
def test_nearly_all_parameters_are_counted(arch: str) -> None:
    assert parameter_count(config_of(arch)) == pytest.approx(parameters(config_of(arch)), rel=0.02)


SCALING = (REPOSITORY / "docs/scaling.md").read_text().splitlines()
TOKENS = 4 * 2048


def config_of_preset(arch: str) -> Any:
    model = MODEL_REGISTRY[arch]
    return model.config_class(**model.preset, vocab_size=50_000)


@pytest.mark.parametrize("arch", ["retnet_xl", "retnet_7b", "retnet_13b", "retnet_65b"])
def test_table_of_memory(arch: str) -> None:
    config = config_of_preset(arch)
    gigabytes = [preset_memory(config, gpus, TOKENS).total / 2**30 for gpus in (2, 4, 8, 16, 64, 512)]
    row = [f"`{arch}`", f"{parameter_count(config) / 1e9:.1f}", *(f"{value:.0f}" for value in gigabytes)]
    assert f"| {' | '.join(row)} |" in SCALING


@pytest.mark.parametrize("gpus", [2, 8, 64, 512])
@pytest.mark.parametrize("arch", ["retnet_7b", "retnet_13b", "retnet_65b"])
def test_table_of_communication(arch: str, gpus: int) -> None:
    parameters = parameter_count(config_of_preset(arch))
    times = [compute_seconds(parameters, TOKENS), ddp_traffic(parameters, gpus).seconds]
    times.append(sharded_traffic(parameters, gpus).seconds)
    hybrid = f"{sharded_traffic(parameters, gpus, shard_size=8).seconds:.2f}" if gpus > 8 else "-"
    row = [f"`{arch}`", str(gpus), *(f"{value:.2f}" for value in times), hybrid]
    assert f"| {' | '.join(row)} |" in SCALING


def test_a_model_that_does_not_fit_is_refused_with_a_number_that_does() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(999, 1000) for _ in range(10))  # 10 million parameters, 160 MB
    message = r"--arch x with 0.0 billion .* for 2 processes .* \(16 bytes per parameter\) .* use 5 processes or more"
    with pytest.raises(InputError, match=message):
        check_fit(model, 2, 2, 38e6, arch="x")
    check_fit(model, 5, 2, 38e6 + 1e6, arch="x")
