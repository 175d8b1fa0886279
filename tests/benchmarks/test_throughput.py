"""benchmarks/throughput.py: its cases, its data, its table, and the summary of a profile."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq import tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.options import get_training_parser, parse_args_and_arch

from benchmarks import plain_loop, throughput, training_profile
from torchscale_fairseq import Decoder, DecoderConfig, plugin

plugin.register()

CASE = "small:2x8"


def test_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def ours(words: list[str], log: Path) -> throughput.Measured:
        commands.append(words)
        return throughput.Measured(3e5, 2**30)

    monkeypatch.setattr(throughput, "measure_ours", ours)
    monkeypatch.setattr(throughput, "measure_plain", lambda case, options: throughput.Measured(2e5, 2**31))
    assert throughput.main(["--cases", CASE, "--device", "cpu", "--vocab-size", "100", "--", "--lr", "1"]) == 0
    assert "| 4 x 256, 2 x 8 | 300,000 | 0.6% | 1.0 GiB | 200,000 | 0.4% | 2.0 GiB | 1.500 |" in capsys.readouterr().out
    assert commands[0][-2:] == ["--lr", "1"] and "gpt_magneto_small" in commands[0]


def test_few_long_updates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--interval says how many of them make a figure."""
    given: list[list[str]] = []

    def ours(words: list[str], log: Path) -> throughput.Measured:
        given.append(words)
        return throughput.Measured(1, 0)

    monkeypatch.setattr(throughput, "measure_ours", ours)
    few = ["--cases", CASE, "--device", "cpu", "--vocab-size", "100", "--ours-alone", "--updates", "6"]
    assert throughput.main([*few, "--interval", "3"]) == 0
    assert given[0][given[0].index("--log-interval") + 1] == "3"
    with pytest.raises(SystemExit):
        throughput.main(few)
    assert "must be at least 100" in capsys.readouterr().err


def test_data_is_as_long_as_the_updates(tmp_path: Path) -> None:
    from fairseq.data import Dictionary
    from fairseq.data.indexed_dataset import make_dataset

    throughput.write_data(tmp_path, 2500, 100)
    text = make_dataset(str(tmp_path / "train"), impl="mmap")
    assert sum(len(sentence) for sentence in text) == 2500
    assert len(Dictionary.load(str(tmp_path / "dict.txt"))) == 100


@pytest.mark.parametrize("family", ["gpt_magneto", "bert_magneto"])
def test_all_batches_have_one_shape(family: str, tmp_path: Path) -> None:
    """Another one would be compiled for seconds, which count as an update's."""
    options = throughput.parse_options(["--cases", f"small:2x8,{family}", "--device", "cpu", "--vocab-size", "100"])
    (case,) = options.cases
    throughput.write_data(tmp_path, case.text_of_update * 4, options.vocab_size)
    words = throughput.train_words(case, tmp_path, options)
    config = convert_namespace_to_omegaconf(parse_args_and_arch(get_training_parser(), words))
    task = tasks.setup_task(config.task)
    task.load_dataset("train")
    batches = list(task.get_batch_iterator(task.dataset("train"), max_sentences=case.sequences).next_epoch_itr())
    assert [batch["net_input"]["src_tokens"].shape for batch in batches] == 4 * [(2, 8)]
    assert [batch["ntokens"] for batch in batches] == 4 * [case.tokens], "no padding"


@pytest.mark.parametrize("text", ["huge:2x8", "base:2", "base"])
def test_cases_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="try base:16x1024"):
        throughput.Case.of(text)


def test_plain_loop_is_the_same_model(capsys: pytest.CaptureFixture[str]) -> None:
    """As many parameters as ours with learned positions, but for the rows of a position table that fairseq leaves
    empty; and it runs."""
    layers, width, heads, length, vocab_size = 2, 16, 2, 8, 30
    plain = plain_loop.GPT(layers, width, heads, length, vocab_size, subln=True)
    sizes: dict[str, Any] = {"decoder_layers": layers, "decoder_embed_dim": width, "decoder_attention_heads": heads}
    sizes |= {"decoder_ffn_embed_dim": 4 * width, "vocab_size": vocab_size, "max_target_positions": length}
    ours = Decoder(DecoderConfig(**sizes, decoder_learned_pos=True, share_decoder_input_output_embed=True))
    count, expected = (sum(p.numel() for p in model.parameters()) for model in (plain, ours))
    assert count == expected - 2 * width
    words = [str(n) for n in (layers, width, heads, 2, length)]
    plain_loop.main([*words, "--device", "cpu", "--vocab-size", "30", "--updates", "1", "--repeats", "1"])
    assert json.loads(capsys.readouterr().out)["seconds"] > 0


def test_summary_of_a_profile() -> None:
    """Two updates of 10 ms each; two kernels overlap."""
    trace: list[dict[str, Any]] = [
        {"cat": "user_annotation", "name": "updates", "ts": 0, "dur": 20_000},
        {"cat": "kernel", "name": "nvjet_sm90_gemm", "ts": 0, "dur": 6_000},
        {"cat": "kernel", "name": "triton_red_fused", "ts": 4_000, "dur": 4_000},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoH", "ts": 9_000, "dur": 1_000},
        {"cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 0, "dur": 5_000},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0, "dur": 5_000},
        {"name": "metadata"},
    ]
    text = " ".join(training_profile.summary(trace, 2).split())
    assert "an update: 10.00 ms, 2 kernels in 4.50 ms, idle 5.50 ms" in text
    assert "3.00 ms 0.5 x matrix products 2.00 ms 0.5 x compiled 0.50 ms 0.5 x copies" in text
    assert "2.50 ms 0.5 x cudaStreamSynchronize" in text and "cudaLaunchKernel" not in text


@pytest.mark.parametrize("rank", [0, 1])
def test_profiler_covers_the_updates_it_is_told(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The first process prints."""

    class Trainer:
        data_parallel_rank = rank
        updates = 0

        def get_num_updates(self) -> int:
            return self.updates

        def train_step(self, samples: Any) -> None:
            self.updates += 1

    trainer = Trainer()
    step = training_profile.profiled(Trainer.train_step, first=2, updates=1)
    step(trainer, None)
    step(trainer, None)
    with pytest.raises(SystemExit):
        step(trainer, None)
    assert ("an update:" in capsys.readouterr().out) is (rank == 0)
    assert not torch.autograd._profiler_enabled()
