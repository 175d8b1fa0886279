"""What processes tell each other in an update: the host reads it in the next one, and logs what fairseq logs."""

import pytest

pytest.importorskip("fairseq")

from tests.distributed.fully_sharded import SHARDED
from tests.fairseq_cli import FEW_UPDATES, run_gloo, tiny_language_data
from tests.plugin.shrunk import EXPERTS, shrunk
from torchscale_fairseq.hooks.runs.preemption import ASKED

LANGUAGE = ["--task", "language_modeling", "--tokens-per-sample", "8", "--max-target-positions", "30"]
COMMON = [*FEW_UPDATES, "--cpu", "--dropout", "0", "--batch-size", "2", "--clip-norm", "0.5", "--num-workers", "0"]
COMMON += ["--no-save", "--max-update", "100", "--log-interval", "100", "--optimizer", "fused_adam_torch"]
PER_SENTENCE = ["--sentence-avg"]
WITH_EXPERTS = [*map(str, EXPERTS), "--criterion", "moe_cross_entropy"]
KINDS = {
    "DDP": [],
    "DDP in bfloat16": ["--bf16", "--criterion", "linear_cross_entropy"],
    "gradients per sentence": [*PER_SENTENCE, "--ddp-backend", "legacy_ddp"],
    "fully sharded": SHARDED,
    "fully sharded in bfloat16": [*SHARDED, "--bf16"],
    "DDP in float16": ["--fp16", "--fp16-no-flatten-grads"],
    "fully sharded in float16": [*SHARDED, "--fp16"],
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Words of fairseq-train, by kind of training."""
    text = tiny_language_data(tmp_path_factory.mktemp("text"))
    words = [str(text), *LANGUAGE, *map(str, shrunk("gpt_deepnorm_small")), *map(str, COMMON)]
    return {kind: [*words, *more] for kind, more in KINDS.items()}


def in_two_processes(lines: str) -> None:
    """Run lines of Python that use ``tests.distributed.late_figures``, where signals are heeded."""
    run_gloo(
        2, f"import os\nos.environ['{ASKED}'] = '1'\nfrom tests.distributed.late_figures import *\n{lines}"
    ).check()


def test_an_update_reads_nothing_of_its_own(cases: dict[str, list[str]]) -> None:
    """But the host may read what the device did in the update before."""
    in_two_processes(f"""
found = {{kind: reads_of_an_update(words) for kind, words in {cases!r}.items()}}
assert not any(found.values()), found
""")


def test_figures_are_those_that_are_read_at_once(cases: dict[str, list[str]]) -> None:
    in_two_processes(f"""
from pytest import approx
for kind, words in {cases!r}.items():
    for found, expected in zip(logged(words, late=True), logged(words, late=False), strict=True):
        assert found == approx(expected, rel=1e-6, abs=1e-6, nan_ok=True), kind
""")


def test_experts_are_measured_while_other_gradients_are_summed(cases: dict[str, list[str]]) -> None:
    """In updates from gradients in half precision, of which the first is not known to be one. The norms stay."""
    pytest.importorskip("triton")
    in_two_processes(f"""
words = {[*cases["DDP in bfloat16"], *WITH_EXPERTS]!r}
(early, norms), (usual, expected) = (steps_with_experts(words, early=early) for early in (True, False))
at_last, at_once = ["sum", "clip", "measure", "end"], ["measure", "sum", "clip", "end"]
assert early == [*at_last, *at_once, *at_once], early
assert usual == at_last * 3, usual
assert norms == expected, (norms, expected)
""")


def test_an_infinite_gradient_of_experts_is_no_part_of_other_updates(cases: dict[str, list[str]]) -> None:
    """The norm of an update that is made again is its own: --fp16 skips it, --bf16 ends before it."""
    pytest.importorskip("triton")
    skips, ends = (cases[f"DDP in {dtype}"] + WITH_EXPERTS for dtype in ("float16", "bfloat16"))
    in_two_processes(f"""
skipped = end_of_an_infinite_expert({skips!r})
assert skipped == (3, ""), skipped
updates, error = end_of_an_infinite_expert({ends!r})
assert updates == 2 and "gradients are inconsistent" in error, (updates, error)
""")


def test_nan_in_one_process_ends_all(cases: dict[str, list[str]]) -> None:
    """In the next update, with fairseq's words; the weights are those before it. --fp16 skips the update."""
    skipping_none = {kind: words for kind, words in cases.items() if "--fp16" not in words}
    in_two_processes(f"""
for kind, words in {skipping_none!r}.items():
    updates, error, far = end_of_a_nan(words)
    assert (updates, far) == (1, 0.0), kind
    assert ("gradients are Nan/Inf" if "sharded" in kind else "gradients are inconsistent") in error, (kind, error)
""")


def test_averages_of_an_epoch_have_its_last_update(cases: dict[str, list[str]]) -> None:
    in_two_processes(f"""
updates, counts = averages_of_an_epoch({cases["DDP"]!r})
assert counts == [updates - 1, updates], (updates, counts)
""")


def test_processes_stop_together(cases: dict[str, list[str]]) -> None:
    in_two_processes(f"""
assert stops({cases["DDP"]!r}) == [False, False, False, True]
""")
