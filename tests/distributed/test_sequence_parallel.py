"""--seq-parallel: several gloo processes that share sequences train what one process trains."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

pytest.importorskip("fairseq")

from omegaconf import OmegaConf

from tests.checkpoints import assert_same_weights
from tests.fairseq_cli import Finished, run_fairseq, run_gloo, run_processes, tiny_language_data
from tests.printed import assert_logged_alike
from torchscale_fairseq import DecoderConfig, LongNetDecoder
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.sequence_parallel import check_options

BRANCHES = ["--segment-length", "[8,20,64]", "--dilated-ratio", "[1,2,3]"]
SIZES = ["layers", "2", "embed-dim", "16", "ffn-embed-dim", "32", "attention-heads", "2"]
COMMON = ["--dropout", "0", "--optimizer", "sgd", "--lr", "0.1", "--clip-norm", "0.5", "--num-workers", "0"]
COMMON += ["--log-format", "simple", "--log-interval", "1", "--required-batch-size-multiple", "1"]
COMMON += ["--batch-size", "4", "--tokens-per-sample", "30"]
FIGURES = ["loss", "wpb", "bsz", "gnorm"]
SHARED = ["--seq-parallel"]
SMALLEST: dict[str, Any] = {
    f"decoder_{name}": 2 for name in ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
}


def sizes(side: str) -> list[str]:
    return [x for name, value in zip(SIZES[::2], SIZES[1::2], strict=True) for x in (f"--{side}-{name}", value)]


CAUSAL = ["--task", "language_modeling", "--arch", "longnet", *BRANCHES, *sizes("decoder")]
MASKED = ["--task", "masked_lm", "--arch", "bert_magneto", "--attention-dropout", "0", *BRANCHES, *sizes("encoder")]
MASKED += ["--criterion", "masked_lm", "--sample-break-mode", "complete", "--mask-prob", "0.3"]
MODELS = {"causal": CAUSAL, "masked": MASKED}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_data(tmp_path_factory.mktemp("sequence-data"))


def train(processes: int, data: Path, folder: Path, *flags: object, updates: int = 3) -> Finished:
    arguments = [data, *COMMON, "--save-dir", folder, "--max-update", updates, *flags]
    if processes == 1:
        return run_fairseq("train", arguments)
    return run_processes(processes, "train", arguments)


@pytest.fixture(scope="module", params=MODELS)
def alone(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Three updates in one process, for which --seq-parallel means nothing."""
    folder = tmp_path_factory.mktemp("alone")
    done = train(1, data, folder, *MODELS[request.param], *SHARED).check()
    (folder / "output.txt").write_text(done.output)
    return request.param, folder


@pytest.mark.parametrize(("processes", "backend"), [(2, "pytorch_ddp"), (4, "legacy_ddp")])
def test_equals_one_process(processes: int, backend: str, data: Path, alone: tuple[str, Path], tmp_path: Path) -> None:
    kind, folder = alone
    done = train(processes, data, tmp_path, *MODELS[kind], *SHARED, "--ddp-backend", backend).check()
    assert_same_weights(folder, tmp_path, 1e-6)
    assert_logged_alike(done.output, (folder / "output.txt").read_text(), FIGURES)


def test_groups_with_batches_of_their_own(data: Path, tmp_path: Path) -> None:
    """Two groups of two, of which one has nothing left for the last update of the epoch; the sample size counts
    sentences."""
    flags = [*CAUSAL, "--criterion", "linear_cross_entropy", "--sentence-avg", "--checkpoint-activations"]
    alone = train(1, data, tmp_path / "one", *flags, "--update-freq", "2").check()
    done = train(4, data, tmp_path / "four", *flags, *SHARED, "--seq-parallel-size", "2").check()
    assert_same_weights(tmp_path / "one", tmp_path / "four", 1e-6)
    assert_logged_alike(done.output, alone.output, FIGURES, "| train")


@pytest.mark.slow
def test_compiled_layers(data: Path, tmp_path: Path) -> None:
    flags = [*CAUSAL, "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
    train(1, data, tmp_path / "one", *flags).check()
    train(2, data, tmp_path / "two", *flags, *SHARED, "--compile").check()
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-6)


def test_other_numbers_of_processes_resume_and_one_evaluates(data: Path, tmp_path: Path) -> None:
    """The checkpoint is written by one group within an epoch, at its fourth batch of five."""
    train(2, data, tmp_path, *CAUSAL, *SHARED, updates=4).check()
    written = tmp_path / "checkpoint_last.pt"
    resume = [*CAUSAL, "--restore-file", written]
    train(1, data, tmp_path / "one", *resume, "--update-freq", "2", updates=6).check()
    train(4, data, tmp_path / "four", *resume, *SHARED, "--seq-parallel-size", "2", updates=6).check()
    assert_same_weights(tmp_path / "one", tmp_path / "four", 1e-6)
    scored = run_fairseq("eval_lm", [data, "--path", written, "--batch-size", "4"]).check()
    assert "Loss (base 2)" in scored.output


def test_batches_are_sliced() -> None:
    done = run_gloo(3, "from tests.distributed.slices import check_batches; check_batches()")
    assert done.check().stdout.count("passed") == 3


def test_refused_where_processes_do_not_divide(data: Path, tmp_path: Path) -> None:
    done = train(2, data, tmp_path, *CAUSAL, *SHARED, "--seq-parallel-size", "3")
    assert done.returncode == 1
    assert "--seq-parallel-size (3) must divide the number of processes (2); drop --seq-parallel-size." in done.output


def test_refused_with_dense_attention(data: Path, tmp_path: Path) -> None:
    flags = ["--task", "language_modeling", "--arch", "gpt_xpos_small", *sizes("decoder"), *SHARED]
    done = train(1, data, tmp_path, *flags)
    assert (
        "--seq-parallel cannot be combined with --arch gpt_xpos_small, whose attention is dense; give --arch longnet"
        in done.output
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"seq_parallel": False, "seq_parallel_size": 2},
            r"--seq-parallel-size \(2\) has no use without --seq-parallel",
        ),
        ({"seq_parallel_size": -2}, r"--seq-parallel-size \(-2\) must be at least 1, or 0 for all"),
        ({"torchscale_compatible": True}, "cannot be combined with --torchscale-compatible"),
        ({"use_bmuf": True}, "cannot be combined with --use-bmuf"),
        (
            {"ddp_backend": "slowmo"},
            "cannot be combined with --ddp-backend slowmo; give --ddp-backend legacy_ddp or --ddp-backend pytorch_ddp",
        ),
        (
            {"moe_freq": 1, "moe_expert_count": 2},
            "cannot be combined with experts, whose capacity is counted per batch",
        ),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    experts: dict[str, Any] = {name: options[name] for name in options if name.startswith("moe_")}
    model = LongNetDecoder(DecoderConfig(segment_length="[4]", dilated_ratio="[1]", **SMALLEST, **experts))
    given = {"ddp_backend": "pytorch_ddp", "use_bmuf": False, "seq_parallel": True, "seq_parallel_size": 0}
    cfg = Namespace(**{**given, "torchscale_compatible": False, "_name": "longnet", **options})
    with pytest.raises(ValueError, match=message):
        check_options(Namespace(model=cfg, distributed_training=cfg, optimization=cfg), model)


def test_architectures_without_dilated_attention() -> None:
    cfg = OmegaConf.create({"model": {"_name": "retnet_small", "seq_parallel": True, "seq_parallel_size": 2}})
    cfg.distributed_training, cfg.optimization = {"ddp_backend": "pytorch_ddp"}, {"use_bmuf": False}
    cfg.model.torchscale_compatible = False
    with pytest.raises(OptionError) as refused:
        check_options(cfg, nn.Module())
    assert str(refused.value) == (
        "--seq-parallel cannot be combined with --arch retnet_small, which cannot have dilated attention (longnet, "
        "longvit and slide_encoder architectures have it); drop --seq-parallel and --seq-parallel-size."
    )
