"""Options of generation that would change nothing in a command: it says so, where stock is silent."""

import logging
from collections.abc import Iterator
from typing import Any

from fairseq.dataclass.configs import CommonEvalConfig, GenerationConfig
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.speech_to_text import SpeechToTextTask
from fairseq.tasks.translation_lev import TranslationLevenshteinTask

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.hooks.options.surfaces import flag_of

logger = logging.getLogger(__name__)

NEEDS = {
    "sampling_topk": ("sampling", "without --sampling"),
    "sampling_topp": ("sampling", "without --sampling"),
    "diverse_beam_strength": ("diverse_beam_groups", "without --diverse-beam-groups"),
    "lm_path": ("lm_weight", "with an --lm-weight of 0"),
    "lm_weight": ("lm_path", "without --lm-path"),
    "retain_dropout_modules": ("retain_dropout", "without --retain-dropout"),
}
"""Options that count only next to another one."""
REFINEMENT = (
    "iter_decode_eos_penalty",
    "iter_decode_max_iter",
    "iter_decode_force_max_iter",
    "iter_decode_with_beam",
    "iter_decode_with_external_reranker",
    "retain_iter_history",
    "print_step",
    "decoding_format",
)
"""Options of translation by iterative refinement (``--task translation_lev``)."""
SPEECH = ("beam_mt", "max_len_a_mt", "max_len_b_mt", "lenpen_mt", "eos_token")
"""Options of fairseq's speech tasks."""
DEPRECATED = ("no_early_stop", "no_beamable_mm")
"""Options that fairseq keeps for old scripts; the second one counts for fconv alone."""
NOT_INTERACTIVE = ("prefix_size", "sacrebleu", "lm_path", "lm_weight", "results_path", "quiet")
"""Options that ``fairseq-interactive`` accepts like ``fairseq-generate`` and does not read."""


def check(cfg: Any, *, interactive: bool) -> None:
    """Log a line for each option that would change nothing.

    Args:
        cfg: of fairseq-generate or fairseq-interactive.
        interactive: whether it is the second one.

    Raises:
        InputError: an option asks for output that this task's generator does not have.
    """
    task = TASK_REGISTRY.get(cfg.task._name, object) if cfg.task is not None else object
    refines = issubclass(task, TranslationLevenshteinTask)
    for name in ("print_step", "retain_iter_history"):
        if _given(cfg, name) and not refines:
            raise InputError(
                f"{flag_of(name)} needs a model that translates by iterative refinement (--task translation_lev); "
                f"leave it out with --task {cfg.task._name}."
            )
    for name, reason in _without_effect(cfg, task, interactive=interactive):
        logger.warning(f"{flag_of(name)} has no effect {reason}")
    if cfg.generation.nbest > cfg.generation.beam:
        logger.warning(f"--nbest ({cfg.generation.nbest}) is cut to the {cfg.generation.beam} hypotheses of --beam")


def _without_effect(cfg: Any, task: type, *, interactive: bool) -> Iterator[tuple[str, str]]:
    """Each such option with the reason."""
    for name, (needed, reason) in NEEDS.items():
        if _given(cfg, name) and not _given(cfg, needed):
            yield name, reason
    for names, serving, reason in (
        (REFINEMENT, issubclass(task, TranslationLevenshteinTask), "outside --task translation_lev"),
        (SPEECH, issubclass(task, SpeechToTextTask), "outside fairseq's speech tasks"),
        (DEPRECATED, False, "any more: fairseq keeps it for old scripts"),
        (NOT_INTERACTIVE, not interactive, "in fairseq-interactive; use fairseq-generate"),
    ):
        for name in names:
            if _given(cfg, name) and not serving:
                yield name, reason
    if cfg.generation.unnormalized and _given(cfg, "lenpen"):
        yield "lenpen", "with --unnormalized"


def _given(cfg: Any, name: str) -> bool:
    """Whether an option differs from its default."""
    for group, defaults in ((cfg.generation, GenerationConfig()), (cfg.common_eval, CommonEvalConfig())):
        if hasattr(defaults, name):
            return bool(getattr(group, name) != getattr(defaults, name))
    raise AssertionError(name)
