"""Options that cannot work are refused before data is read, and nothing trained is lost to a wrong name."""

import ast
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.fairseq_cli import FEW_UPDATES, TINY_LANGUAGE_MODEL, run_beside_fairseq, run_fairseq
from tests.plugin.sentences import sentences_of, training
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops import flash_attention, retention_forms
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.errors.reporting import sentence_of
from torchscale_fairseq.hooks.options.backends import check_backends
from torchscale_fairseq.hooks.options.refused import check_training
from torchscale_fairseq.hooks.options.unknown import hint

PAIR = ["--dataset-impl", "raw", "--source-lang", "en", "--target-lang", "de"]
UNKNOWN_WORDS = ["--unkpen", "-100", "--max-len-a", "0", "--max-len-b", "4", "--batch-size", "16"]
REPLACE = """
from fairseq import utils
alignment = {alignment!r}
print(utils.replace_unk("a <unk> b <unk>", "x y z", alignment, {{"y": "Y"}}, "<unk>"))
"""
API = """
import torch
from fairseq.data.dictionary import Dictionary
from fairseq.models.transformer import TransformerModel
from fairseq.sequence_scorer import SequenceScorer
class Model(torch.nn.Module):
    def forward(self, **inputs):
        return torch.zeros(1, 2, 4), None
    def get_normalized_probs(self, output, **more):
        return output[0].log_softmax(-1)
sample = {{"net_input": {{"src_tokens": torch.tensor([[4, 2]])}}, "target": torch.tensor([[3, 2]])}}
for call in (
    lambda: SequenceScorer(Dictionary(), compute_alignment=True).generate([Model()], sample),
    lambda: TransformerModel.from_pretrained({folder!r}, "checkpoint_last.pt", {data!r}).translate("w1 " * 2000),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""


def test_sentences(
    translation_data: Path, stock_checkpoint: Path, language_data: Path, language_checkpoint: Path, tmp_path: Path
) -> None:
    missing, bad = tmp_path / "missing", tmp_path / "bad"
    bad.write_text("Haus house\nKatze\n")
    generate = ["generate", translation_data, "--path", stock_checkpoint]
    evaluate = ["eval_lm", language_data, "--path", language_checkpoint]
    replace = [*generate, *PAIR, "--print-alignment", "--replace-unk"]
    metric = "--best-checkpoint-metric"
    trained = {
        ("--update-freq", "0"): "--update-freq (0) must be at least 1; give --update-freq 1.",
        ("--max-tokens", "0"): "--max-tokens (0) must be at least 1; give --max-tokens 1.",
        ("--eval-bleu", "--eval-bleu-args", "{beam"): "--eval-bleu-args ({beam) is not JSON: Expecting property name "
        "enclosed in double quotes: line 1 column 2 (char 1); write it like '{\"beam\": 4}'",
        ("--lr-scheduler", "polynomial_decay"): "--total-num-update is missing",
        (
            "--max-target-positions",
            "0",
        ): "--max-target-positions (0) must be at least 1; give --max-target-positions 1.",
        (metric, "bleu"): f"{metric} bleu needs --eval-bleu, without which it is not measured",
        (metric, "f1"): f"{metric} f1 is not among the figures of validation; they are loss, ppl",
        (metric, "ppl"): "success",
    }
    commands: dict[tuple[Any, ...], str] = {
        (
            *generate,
            "--model-overrides",
            "{'x",
        ): "--model-overrides ({'x) is not a dictionary in Python's notation, like \"{'dropout': 0}\"",
        (*generate, "--constraints"): "--constraints has nothing to read in fairseq-generate: give it to "
        "fairseq-interactive, and each constraint after a tab in the line of its sentence",
        (
            *generate,
            *PAIR,
            "--replace-unk",
            "",
        ): "--replace-unk needs --print-alignment, which finds the source word of each unknown word, "
        "and a model that keeps attention weights, such as --arch transformer",
        (*replace, missing): f"{missing}: No such file or directory",
        (*replace, bad): f"--replace-unk {bad}, line 2 must hold a source word and its translation",
        (*generate, "--bpe", "sentencepiece"): "--bpe sentencepiece needs --sentencepiece-model",
        (*generate, "--bpe", "subword_nmt"): "--bpe subword_nmt needs --bpe-codes",
        (*evaluate, "--remove-bpe", "sentencepiece"): "--remove-bpe sentencepiece is unknown to fairseq-eval-lm, which "
        "joins pieces of subword_nmt alone: leave it out; torchscale-fairseq perplexity gives figures that do not "
        "depend on the pieces",
        (
            *("train", language_data, *TINY_LANGUAGE_MODEL, *FEW_UPDATES),
            "--tokens-per-sample",
            0,
        ): "--tokens-per-sample (0) must be at least 1; give --tokens-per-sample 1.",
        (
            *("train", language_data, "--task", "language_modeling", "--arch", "gpt_deepnorm_small", *FEW_UPDATES),
            "--moe-clip",
            "plain",
        ): "--moe-clip plain has no use without experts; give --moe-freq 1 and --moe-expert-count 8, or drop "
        "--moe-clip.",
        **{
            (command, data): f"--path is missing: give the checkpoint that fairseq-{command.replace('_', '-')} reads, "
            "such as --path checkpoints/checkpoint_best.pt"
            for command, data in (
                ("eval_lm", language_data),
                ("generate", translation_data),
                ("interactive", translation_data),
                ("validate", translation_data),
            )
        },
        (
            *("eval_lm", language_data, "--path", missing),
        ): f"--path {missing} does not exist: {tmp_path} has no checkpoint; give a file that fairseq-train wrote to "
        "its --save-dir, checkpoint_best.pt, say",
        (
            *("validate", translation_data, "--path", stock_checkpoint.parent),
        ): f"--path {stock_checkpoint.parent} is a folder: give a checkpoint file, such as "
        f"{stock_checkpoint.parent}/checkpoint_best.pt",
        (
            *(*generate, "--lm-weight", "1", "--lm-path", stock_checkpoint.with_name("none.pt")),
        ): f"--lm-path {stock_checkpoint.parent}/none.pt does not exist: give a checkpoint file, such as "
        f"{stock_checkpoint.parent}/checkpoint_best.pt",
        ("eval_lm", language_data, "--path", "a:b"): "--path names 2 checkpoints, and fairseq-eval-lm evaluates one: "
        "give one of them",
    }
    train = [["train", *training(translation_data, tmp_path, *words)] for words in trained]
    assert sentences_of([*commands, *train]) == [*commands.values(), *trained.values()]
    assert (tmp_path / "checkpoint_best.pt").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"attention_backend": "flash_attn"},
            r"--attention-backend flash_attn needs the package .*; give --attention-backend sdpa\.",
        ),
        ({"flash_attention": True}, r"--flash-attention needs the package .*; drop --flash-attention\."),
        ({"flash_attention": True, "segment_length": "[4]"}, None),
        (
            {"retention_backend": "fla"},
            r"--retention-backend fla needs the package .*; give --retention-backend torch\.",
        ),
        ({"retention_backend": "auto"}, None),
    ],
)
def test_backends_before_the_model(given: dict[str, Any], message: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "_is_installed", lambda: False)
    monkeypatch.setattr(retention_forms, "_HAS_FLA", False)
    common = Namespace(cpu=True, bf16=False, fp16=False, amp=False)
    with nullcontext() if message is None else pytest.raises(OptionError, match=message):
        check_backends(Namespace(model=Namespace(**given), common=common))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("optimzation", r"there is no section optimzation; did you mean optimization\?"),
        ("zzz", "there is no section zzz; choose from bmuf, bpe, checkpoint, common, .*"),
    ],
)
def test_section_that_nothing_reads(section: str, message: str) -> None:
    cfg = OmegaConf.structured(FairseqConfig())
    OmegaConf.set_struct(cfg, False)
    cfg[section] = {"max_update": 2}
    with pytest.raises(InputError, match=f"^{message}$"):
        check_training(cfg)


def test_option_of_an_architecture_in_a_command_that_reads_a_checkpoint() -> None:
    message = "unrecognized arguments: --subln --rel-pos-buckets 8 --segment-length=[4,8]"
    told = hint(message, ["--path", "--arch"])
    overrides = ast.literal_eval(ast.literal_eval(told.partition("give --model-overrides ")[2].rstrip(".")))
    assert overrides == {"subln": True, "rel_pos_buckets": 8, "segment_length": [4, 8]}
    assert "of this command" not in told
    assert "the --arch of this command has no such option" in hint(message, ["--arch"])


def test_an_option_refused_while_training_is_spelt_as_a_flag() -> None:
    error = OptionError("attention_backend", "flash_attn", "{attention_backend=} knows no padding", [])
    assert sentence_of(error) == "--attention-backend flash_attn knows no padding."


def test_unknown_words_are_replaced_by_the_words_they_are_aligned_with() -> None:
    code = REPLACE.format(alignment=[(2, 0), (0, 1), (1, 2), (1, 3)])
    assert "TypeError" in run_beside_fairseq(code, plugin=False).last_line
    assert run_beside_fairseq(code, plugin=True).check().stdout.endswith("a x b Y\n")


@pytest.mark.slow
def test_replacing_unknown_words_without_a_table(
    translation_data: Path, stock_checkpoint: Path, shared_folder: Path, tmp_path: Path
) -> None:
    for language in ("en", "de"):
        (tmp_path / f"dict.{language}.txt").write_bytes((translation_data / f"dict.{language}.txt").read_bytes())
        (tmp_path / f"test.en-de.{language}").write_text((shared_folder / f"test.{language}").read_text())
    options = [*PAIR, *UNKNOWN_WORDS, "--print-alignment", "--replace-unk"]
    done = run_fairseq("generate", [tmp_path, "--path", stock_checkpoint, *options]).check()
    hypotheses = [line.split("\t")[2] for line in done.stdout.splitlines() if line.startswith("H-")]
    assert len(hypotheses) == 21
    assert all(word.startswith("w") for line in hypotheses for word in line.split())


def test_api(stock_checkpoint: Path, translation_data: Path) -> None:
    code = API.format(folder=str(stock_checkpoint.parent), data=str(translation_data))
    output = run_beside_fairseq(code, plugin=True).check().stdout
    assert "--score-reference with --print-alignment needs attention weights" in output
    assert "has 2001 source tokens (with </s>), and the model 1024 source positions; shorten it" in output
