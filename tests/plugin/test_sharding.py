"""Options with --ddp-backend fully_sharded, and the memory that a model takes."""

from pathlib import Path

import pytest

pytest.importorskip("fairseq")

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.fairseq_cli import FEW_UPDATES, TINY_LANGUAGE_MODEL, run_fairseq
from tests.plugin.registered import config_of
from tests.plugin.test_models import parameters
from tests.plugin.trainers import make_trainer
from torchscale_fairseq.hooks.sharding.memory import parameter_count

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


@pytest.mark.parametrize("arch", ["gpt_deepnorm", "bert_magneto", "mt_deepnorm", "retnet_base"])
def test_nearly_all_parameters_are_counted(arch: str) -> None:
    assert parameter_count(config_of(arch)) == pytest.approx(parameters(config_of(arch)), rel=0.02)
