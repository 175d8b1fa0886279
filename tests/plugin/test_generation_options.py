"""Each option of generation changes something, or the command says that it does not."""

import dataclasses
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fairseq")

from fairseq import ngram_repeat_block, options
from fairseq.data import FairseqDataset
from fairseq.dataclass.configs import CommonEvalConfig, GenerationConfig
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks import FairseqTask

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.fairseq_cli import run_fairseq, run_processes
from tests.plugin.built import tiny, words
from tests.plugin.generating import BY_THE_GENERATOR, texts
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.hooks.generation import evaluation
from torchscale_fairseq.hooks.generation import options as generation_options
from torchscale_fairseq.hooks.generation.processes import refuse_processes
from torchscale_fairseq.hooks.options import module_switches
from torchscale_fairseq.hooks.stock import precision

LANGUAGE = ["gpt_deepnorm_small", "gpt_xpos_small", "longnet_small", "retnet_small", "bitnet_small"]
TRANSLATION = ["mt_deepnorm_small", "mt_magneto_small", "mt_xmoe_small", "mt_retnet_small"]
BY_THE_COMMAND = {
    *("nbest", "replace_unk", "sacrebleu", "prefix_size", "constraints", "print_alignment", "lm_path", "lm_weight"),
    *("retain_dropout", "retain_dropout_modules", "no_seed_provided"),
}


def settings(**given: Any) -> Any:
    """A command's options, with these of generation."""
    return SimpleNamespace(
        generation=GenerationConfig(**given),
        common_eval=CommonEvalConfig(),
        eval_lm=SimpleNamespace(context_window=0),
        task=SimpleNamespace(_name="translation", tokens_per_sample=32),
    )


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("mt_magneto_small", words())


@pytest.mark.parametrize("name", BY_THE_GENERATOR)
def test_option_changes_what_is_generated(name: str, model: Any) -> None:
    changed = BY_THE_GENERATOR[name]
    rest = {other: value for other, value in changed.items() if other != name}
    assert texts(model, **changed) != texts(model, **rest)


def test_every_option_is_known() -> None:
    groups = (generation_options.REFINEMENT, generation_options.SPEECH, generation_options.DEPRECATED)
    fields = {field.name for field in dataclasses.fields(GenerationConfig)} - {"_name"}
    assert fields == {*BY_THE_GENERATOR, *BY_THE_COMMAND, *(name for group in groups for name in group)}


@pytest.mark.parametrize(
    ("given", "interactive", "message"),
    [
        ({"sampling_topk": 5}, False, "--sampling-topk has no effect without --sampling"),
        ({"diverse_beam_strength": 1.0}, False, "--diverse-beam-strength has no effect without --diverse-beam-groups"),
        ({"lm_path": "lm.pt"}, False, "--lm-path has no effect with an --lm-weight of 0"),
        ({"retain_dropout_modules": "x"}, False, "--retain-dropout-modules has no effect without --retain-dropout"),
        ({"iter_decode_max_iter": 3}, False, "--iter-decode-max-iter has no effect outside --task translation_lev"),
        ({"beam_mt": 3}, False, "--beam-mt has no effect outside fairseq's speech tasks"),
        ({"no_early_stop": True}, False, "--no-early-stop has no effect any more: fairseq keeps it for old scripts"),
        ({"prefix_size": 1}, True, "--prefix-size has no effect in fairseq-interactive; use fairseq-generate"),
        ({"unnormalized": True, "lenpen": 2.0}, False, "--lenpen has no effect with --unnormalized"),
        ({"nbest": 9}, False, "--nbest (9) is cut to the 5 hypotheses of --beam"),
    ],
)
def test_what_changes_nothing_is_named(
    given: dict[str, Any], interactive: bool, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        generation_options.check(settings(**given), interactive=interactive)
    assert [record.message for record in caplog.records] == [message]


def test_usual_options_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    usual = {"sampling": True, "sampling_topk": 5, "lm_path": "lm.pt", "lm_weight": 0.1, "prefix_size": 1}
    generation_options.check(settings(**usual), interactive=False)
    assert not caplog.records


def test_output_that_a_task_has_not_is_refused() -> None:
    with pytest.raises(InputError, match="--print-step needs a model that translates by iterative refinement"):
        generation_options.check(settings(print_step=True), interactive=False)


@pytest.mark.parametrize("arch", ["transformer", *TRANSLATION, *LANGUAGE])
def test_dropout_is_retained(arch: str) -> None:
    """Scores of a text depend on chance, also after the generator has put the model into evaluation."""

    def scores(**given: Any) -> set[float]:
        model = tiny(arch, dictionary, "--dropout", "0.5")
        model.prepare_for_inference_(settings(**given))
        SequenceGenerator([model], dictionary)
        return {texts(model, seed=seed, score_reference=True)[0][1] for seed in (0, 1)}

    dictionary = words()
    assert len(scores(retain_dropout=True)) == 2
    assert len(scores()) == 1


@pytest.mark.parametrize("arch", ["transformer", "mt_deepnorm_small"])
def test_dropout_is_retained_in_the_modules_named(arch: str) -> None:
    """By the names of stock's transformer; each alone changes scores in a way of its own."""
    names = ["TransformerEncoder", "TransformerEncoderLayer", "TransformerDecoder", "TransformerDecoderLayer"]
    dictionary, found = words(), []
    for chosen in (*names, "MultiheadAttention", "TransformerEncoder,TransformerDecoder", str(names)):
        model = tiny(arch, dictionary, "--dropout", "0.5", "--attention-dropout", "0.5")
        model.prepare_for_inference_(settings(retain_dropout=True, retain_dropout_modules=chosen))
        found.append(texts(model, score_reference=True)[0][1])
    assert len(set(found)) == len(found)
    with pytest.raises(InputError, match=r"--retain-dropout-modules \(Layer\) must name"):
        tiny(arch, dictionary).prepare_for_inference_(
            settings(retain_dropout=True, retain_dropout_modules=["Layer", *names])
        )


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ngrams_are_blocked_by_definition(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    for step in range(12):
        tokens = torch.randint(4, 8, (6, 16), generator=generator)
        tokens[:, step + 1 :] = 1
        block = ngram_repeat_block.NGramRepeatBlock(n, use_extension=False)
        scores = block(tokens, torch.zeros(6, 9), 3, 2, step)
        for row, of_row in zip(tokens[:, 1 : step + 1].tolist(), scores, strict=True):
            seen = {tuple(row[i : i + n]) for i in range(len(row) - n + 1)}
            last = row[len(row) - n + 1 :] if n > 1 else []
            repeats = [word for word in range(9) if (*last, word) in seen]
            assert of_row.isinf().nonzero().flatten().tolist() == repeats


def test_diverse_beams_of_any_sentences(model: Any) -> None:
    """Wherever they stand in the data set."""
    given: dict[str, Any] = {"diverse_beam_groups": 2, "beam": 4}
    assert texts(model, ids=(70, 8), **given) == texts(model, **given)


def test_generators_compile_to_torchscript() -> None:
    """Those of stock's models, with the parts that are replaced here."""
    dictionary = words()
    model = tiny("transformer", dictionary).eval()
    sample = {"net_input": {"src_tokens": torch.tensor([[5, 6, 7, 2]]), "src_lengths": torch.tensor([4])}}
    generator = SequenceGenerator([model], dictionary, beam_size=2, max_len_b=6, no_repeat_ngram_size=2)
    compiled, plain = torch.jit.script(generator)(sample), generator.generate([model], sample)
    assert torch.equal(compiled[0][0]["tokens"], plain[0][0]["tokens"])


def test_shards_are_disjoint_and_complete() -> None:
    """Of 21 samples, ordered by length; data sets that are asked for twice are cut once."""

    class Task(FairseqTask):
        def __init__(self) -> None:
            self.datasets = {"test": Samples()}

    class Samples(FairseqDataset):
        def ordered_indices(self) -> Any:
            return np.argsort(np.arange(21) % 5)

    def read(shard: int, shards: int) -> list[int]:
        given = settings()
        given.dataset, given.common_eval.results_path = SimpleNamespace(num_shards=shards, shard_id=shard), "out"
        with evaluation.one_shard(given, "generate"):
            task = Task()
            task.dataset("test")
            found = task.dataset("test").ordered_indices().tolist()
        assert given.common_eval.results_path == ("out" if shards == 1 else f"out/shard-{shard}-of-{shards}")
        return found

    whole = read(0, 1)
    for shards in (2, 4, 21):
        parts = [read(shard, shards) for shard in range(shards)]
        assert sorted(index for part in parts for index in part) == list(range(21))
        assert all(part == whole[shard::shards] for shard, part in enumerate(parts))
    with pytest.raises(InputError, match=r"--num-shards \(22\) is more than the 21 samples of test"):
        read(0, 22)


@pytest.mark.parametrize(
    ("command", "shards", "shard", "context", "message"),
    [
        ("generate", 2, 2, 0, "--shard-id (2) must be at least 0 and below --num-shards (2)"),
        ("generate", 0, 0, 0, "--num-shards (0) must be at least 1"),
        ("interactive", 2, 0, 0, "split the input instead of giving --num-shards"),
        ("eval_lm", 2, 0, 8, "--context-window (8) needs the samples before each one"),
    ],
)
def test_shards_that_do_not_exist_are_refused(
    command: str, shards: int, shard: int, context: int, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        evaluation.check_shard(command, shards, shard, context=context)


def test_precision_flags_exclude_each_other() -> None:
    """In Hydra and on a command line."""
    for check in (
        lambda: precision.check_flags(SimpleNamespace(fp16=True, bf16=True, amp=False)),
        lambda: options.parse_args_and_arch(options.get_generation_parser(), ["--fp16", "--bf16"]),
    ):
        with pytest.raises(InputError, match="--fp16 and --bf16 exclude each other"):
            check()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("fp16", "--fp16 trains several times slower on a CPU than float32"),
        ("bf16", "--bf16 trains several times slower on a CPU than float32"),
        ("amp", "--amp has no effect on a CPU"),
        ("none", ""),
    ],
)
def test_precision_on_a_cpu_is_warned_of(given: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    precision.warn_of_training_on_cpu(SimpleNamespace(**{flag: flag == given for flag in ("fp16", "bf16", "amp")}))
    assert message in caplog.text and bool(message) == bool(caplog.records)


def test_generates_a_shard_in_bf16(translation_data: Path, stock_checkpoint: Path) -> None:
    """The first of two shards; scores of a whole run in float32 are near, and not equal."""
    arguments = [translation_data, "--path", stock_checkpoint, "--beam", "1", "--cpu", "--max-len-b", "9"]
    whole, half = (
        dict(re.findall(r"^H-(\d+)\t(\S+)", run_fairseq("generate", [*arguments, *flags]).check().stdout, re.MULTILINE))
        for flags in ([], ["--bf16", "--num-shards", "2"])
    )
    assert len(whole) == 21 and len(half) == 11 and half.keys() < whole.keys()
    assert all(whole[number] != score for number, score in half.items())


def test_evaluates_a_shard(language_data: Path, language_checkpoint: Path) -> None:
    """The second and the fourth of five samples. Stock's fairseq-validate reads all, and fairseq-eval-lm none, as they
    make a single batch."""
    arguments = [language_data, "--path", language_checkpoint, "--cpu", "--num-shards", "2", "--shard-id", "1"]
    arguments += ["--model-overrides", "{'dropout': 0.1, 'drop': 0.1}"]
    flags = ["--task", "language_modeling", "--batch-size", "1"]
    assert re.search(r"wpb 64 \| bsz 2$", run_fairseq("validate", [*arguments, *flags]).check().output, re.MULTILINE)
    done = run_fairseq("eval_lm", [*arguments, "--tokens-per-sample", "32"]).check()
    assert "Evaluated 64 tokens" in done.output
    assert re.findall("--model-overrides: (.*)", done.output) == [
        "drop has no effect, as it is no option of the checkpoint"
    ]


def test_validates_in_processes_without_a_batch_for_each(language_data: Path, language_checkpoint: Path) -> None:
    """Five samples in three batches for two processes; stock ends with KeyError: 'net_input'."""
    arguments = [language_data, "--path", language_checkpoint, "--cpu", "--task", "language_modeling"]
    done = run_processes(2, "validate", [*arguments, "--batch-size", "2"]).check()
    assert len(re.findall(r" bsz 5$", done.output, re.MULTILINE)) == 2, done.output[-2000:]


@pytest.mark.parametrize(
    ("command", "processes"), [("generate", 2), ("interactive", 2), ("eval_lm", 2), ("eval_lm", 1)]
)
def test_generation_in_several_processes_is_refused(
    command: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's launcher starts them, or fairseq-eval-lm itself."""
    for name, value in {"MASTER_ADDR": "x", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": str(processes)}.items():
        monkeypatch.setenv(name, value)
    launched = SimpleNamespace(distributed_world_size=3 - processes, ddp_backend="pytorch_ddp")
    given = SimpleNamespace(distributed_training=launched)
    with pytest.raises(InputError, match="computes in one process, but was started in 2; start 2 commands instead"):
        refuse_processes(given, command)
    refuse_processes(given, "validate")


def test_switches_by_class_are_refused() -> None:
    """By argparse, as no model of ours has such a flag, or by name."""
    ours = [name for name, cls in MODEL_REGISTRY.items() if cls.__module__.startswith("torchscale_fairseq")]
    flags = {field.name for name in ours for field in dataclasses.fields(MODEL_DATACLASS_REGISTRY[name])}
    assert len(ours) > 50 and not flags & set(module_switches.OF_STOCK_MODELS)
    common, dictionary = SimpleNamespace(quantization_config_path="pq.yaml"), words()
    module_switches.refuse_product_quantization(common, tiny("transformer", dictionary))
    with pytest.raises(InputError, match=r"--quantization-config-path \(pq.yaml\) needs one of stock's models"):
        module_switches.refuse_product_quantization(common, tiny("gpt_deepnorm_small", dictionary))
