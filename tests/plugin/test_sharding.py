"""--ddp-backend fully_sharded."""

from pathlib import Path

import pytest

pytest.importorskip("fairseq")

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.fairseq_cli import FEW_UPDATES, TINY_LANGUAGE_MODEL, run_fairseq
from tests.plugin.registered import config_of
from tests.plugin.test_models import parameters
from torchscale_fairseq.hooks.sharding import largest_that_fits, parameter_count

SHARDED = ["--ddp-backend", "fully_sharded"]


def test_models_of_this_package_are_refused(language_data: Path, tmp_path: Path) -> None:
    """At the start, however large they are."""
    arguments = [language_data, "--task", "language_modeling", "--arch", "retnet_65b", *FEW_UPDATES, *SHARDED]
    done = run_fairseq("train", [*arguments, "--save-dir", tmp_path, "--cpu"])
    assert (
        done.returncode and "--ddp-backend fully_sharded is for fairseq's own models; --arch retnet_65b" in done.output
    )
    assert "is the largest of its family that does" in done.last_line


def test_fairseqs_models_go_its_own_way(language_data: Path, tmp_path: Path) -> None:
    arguments = [language_data, *TINY_LANGUAGE_MODEL, *FEW_UPDATES, *SHARDED, "--save-dir", tmp_path, "--cpu"]
    done = run_fairseq("train", arguments)
    assert "pip install fairscale" in done.last_line or "CUDA" in done.output


@pytest.mark.parametrize(
    ("arch", "gigabytes", "largest"),
    [("retnet_65b", 80, "retnet_3b"), ("retnet_65b", 100, "retnet_7b"), ("gpt_deepnorm", 0.1, None)],
)
def test_largest_that_fits(arch: str, gigabytes: float, largest: str | None) -> None:
    assert largest_that_fits(arch, 50_000, int(gigabytes * 1e9)) == largest


@pytest.mark.parametrize("arch", ["gpt_deepnorm", "bert_magneto", "mt_deepnorm", "retnet_base"])
def test_nearly_all_parameters_are_counted(arch: str) -> None:
    assert parameter_count(config_of(arch)) == pytest.approx(parameters(config_of(arch)), rel=0.02)
