"""--lora-rank through fairseq's own commands."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("fairseq")

import torch

from tests.checkpoints import assert_same_weights, weights
from tests.fairseq_cli import FEW_UPDATES, run_fairseq, run_processes
from tests.helpers import assert_close
from tests.plugin.language_models import LENGTH, load, train
from tests.plugin.shrunk import shrunk
from torchscale_fairseq.checkpoints.reading import load_checkpoint, read_file
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.lora import is_adapter
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.options.model_options import ModelOptions
from torchscale_fairseq.hooks.training.adapters import check_adapters, lora_of
from torchscale_fairseq.tools.convert.checkpoint_files import build, model_options
from torchscale_fairseq.tools.convert.lora_merging import merge_checkpoint

LORA = ("--lora-rank", "4", "--lora-alpha", "32", "--lora-targets", "all", "--no-epoch-checkpoints")


@pytest.fixture(scope="module")
def base(language_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train(language_data, folder, "gpt_magneto", "--max-update", "2", "--no-epoch-checkpoints").check()
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def adapters(base: Path, language_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    train(language_data, folder, "gpt_magneto", *LORA, "--finetune-from-model", str(base)).check()
    return folder / "checkpoint_last.pt"


def test_adapters_alone_are_trained_and_saved(adapters: Path, base: Path) -> None:
    own = read_file(adapters)
    assert all(map(is_adapter, own["model"])) and adapters.stat().st_size < base.stat().st_size / 2
    states = own["last_optimizer_state"]["state"].values()
    assert sum(state["exp_avg"].numel() for state in states) == sum(value.numel() for value in own["model"].values())
    before, whole = load_checkpoint(base)["model"], load_checkpoint(adapters)["model"]
    assert all(torch.equal(whole[name], value) for name, value in before.items())
    assert set(whole) == set(before) | set(own["model"])
    with pytest.raises(InputError, match="has adapters; merge them first: torchscale-fairseq convert merge-lora"):
        build(model_options(own, adapters), whole, adapters)


def test_merged_weights_give_what_adapters_give(adapters: Path, language_data: Path, tmp_path: Path) -> None:
    note = merge_checkpoint(adapters, tmp_path / "merged.pt")
    assert note == "6 adapters of rank 4 are in the weights"
    text = torch.randint(4, 20, (2, 9))
    expected, found = (load(path, language_data)(text)[0] for path in (adapters, tmp_path / "merged.pt"))
    assert_close(found, expected, "float32")
    with pytest.raises(InputError, match=r"merged\.pt has no adapters"):
        merge_checkpoint(tmp_path / "merged.pt", tmp_path / "again.pt")


def test_a_base_that_is_gone_or_moved(adapters: Path, base: Path, tmp_path: Path) -> None:
    state = read_file(adapters)
    state["lora_base"] = {"absolute": str(tmp_path / "gone.pt"), "relative": "gone.pt"}
    torch.save(state, tmp_path / "moved.pt")
    with pytest.raises(InputError, match=r"gone\.pt, on which they were trained, is not there; put it there"):
        load_checkpoint(tmp_path / "moved.pt")
    merge_checkpoint(tmp_path / "moved.pt", tmp_path / "merged.pt", base)
    assert load_checkpoint(tmp_path / "merged.pt")["cfg"]["model"]["lora_rank"] == 0


@pytest.mark.parametrize(
    ("model", "section", "message"),
    [
        ({}, {"finetune_from_model": None}, "--lora-rank 4 needs --finetune-from-model"),
        ({"bitnet": "b1"}, {}, "--lora-rank 4 cannot be combined with --bitnet"),
        ({}, {"ddp_backend": "fully_sharded"}, "cannot be combined with --ddp-backend fully_sharded"),
        ({}, {"store_ema": True}, "cannot be combined with --store-ema"),
    ],
)
def test_refusals(model: dict[str, str], section: dict[str, object], message: str) -> None:
    options = {"finetune_from_model": "base.pt", "ddp_backend": "legacy_ddp", "store_ema": False} | section
    everything = SimpleNamespace(**options)
    named = SimpleNamespace(**vars(ModelOptions(lora_rank=4)), **model)
    cfg = SimpleNamespace(model=named, checkpoint=everything, distributed_training=everything, ema=everything)
    with pytest.raises(OptionError, match=message):
        check_adapters(cfg, experts_are_split=False)


def test_misspelt_targets_are_named_as_typed() -> None:
    with pytest.raises(OptionError, match=r"--lora-targets names 'v_prj', .*; give --lora-targets q_proj,v_proj"):
        lora_of(ModelOptions(lora_rank=4, lora_targets="q_proj,v_prj"))


@pytest.mark.slow
def test_a_resumed_run_reaches_the_same_adapters(base: Path, language_data: Path, tmp_path: Path) -> None:
    flags = [*LORA, "--finetune-from-model", str(base), "--lora-dropout", "0.1", "--max-update"]
    train(language_data, tmp_path / "whole", "gpt_magneto", *flags, "4").check()
    for updates in ("2", "4"):
        train(language_data, tmp_path / "resumed", "gpt_magneto", *flags, updates).check()
    assert_same_weights(tmp_path / "whole", tmp_path / "resumed", 0)
    assert weights(tmp_path / "whole").keys() > load_checkpoint(base)["model"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
def test_half_precision_trains_and_resumes(precision: str, base: Path, language_data: Path, tmp_path: Path) -> None:
    flags = [*LORA, precision, "--finetune-from-model", str(base), "--max-update"]
    for updates in ("2", "4"):
        train(language_data, tmp_path, "gpt_magneto", *flags, updates).check()
    before, after = load_checkpoint(base)["model"], weights(tmp_path)
    assert all(torch.equal(after[name].float(), value.float()) for name, value in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["legacy_ddp", "pytorch_ddp"])
def test_two_processes_train_what_one_does(backend: str, base: Path, language_data: Path, tmp_path: Path) -> None:
    words = [language_data, "--task", "language_modeling", *shrunk("gpt_magneto"), *FEW_UPDATES, "--cpu", *LORA]
    words += ["--dropout", "0", "--tokens-per-sample", LENGTH, "--finetune-from-model", base, "--optimizer", "sgd"]
    words += ["--sample-break-mode", "none", "--required-batch-size-multiple", "1", "--max-update", "2"]
    run_fairseq("train", [*words, "--update-freq", "2", "--batch-size", "8", "--save-dir", tmp_path / "one"]).check()
    both = ["--batch-size", "8", "--save-dir", tmp_path / "two", "--ddp-backend", backend]
    run_processes(2, "train", [*words, *both, "--distributed-backend", "gloo"]).check()
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-6)
