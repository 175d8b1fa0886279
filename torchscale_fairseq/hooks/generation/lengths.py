"""Texts that are longer than a model's positions, in commands that generate or evaluate."""

import inspect
from collections.abc import Callable
from typing import Any

from torchscale_fairseq.core.errors import InputError


def say_what_is_too_long(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A text longer than the model's positions ends generation and evaluation with a message that has no unit and
    only one way out, which leaves the text out."""

    def filter_indices_by_size(
        self: Any, indices: Any, dataset: Any, max_positions: Any = None, ignore_invalid_inputs: bool = False
    ) -> Any:
        try:
            return stock(self, indices, dataset, max_positions, ignore_invalid_inputs)
        except Exception:
            _, ignored = dataset.filter_indices_by_size(indices, max_positions)
            if len(ignored) == 0:
                raise
            tokens, positions = _beyond(dataset.size(ignored[0]), max_positions)
            raise InputError(
                f"sample #{ignored[0]}, counted from 0, has {tokens} tokens (with </s>), and the model "
                f"{positions} positions; shorten it, leave such samples out "
                "with --skip-invalid-size-inputs-valid-test, or train a model with more (--tokens-per-sample of "
                "language models, --max-source-positions, --max-target-positions)."
            ) from None

    return filter_indices_by_size


def _beyond(sizes: Any, limits: Any) -> tuple[str, str]:
    """The size, and the limit that it exceeds: of a text, or of the source and target that do."""
    if not isinstance(sizes, (tuple, list)):
        return str(int(sizes)), str(limits)
    limits = limits if isinstance(limits, (tuple, list)) else [limits] * len(sizes)
    sides = zip(("source", "target"), sizes, limits, strict=False)
    beyond = [(name, int(size), limit) for name, size, limit in sides if limit is not None and size > limit]
    return (
        " and ".join(f"{size} {name}" for name, size, _ in beyond),
        " and ".join(f"{int(limit)} {name}" for name, _, limit in beyond),
    )


def score_all_of_the_text(stock: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq-eval-lm leaves out samples that are longer than the model's positions, which with the default
    ``--tokens-per-sample`` can be the whole text. Now it is an error."""

    def eval_lm_dataloader(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(stock).bind(self, *args, **kwargs)
        arguments.apply_defaults()
        window, limit = arguments.arguments["context_window"], arguments.arguments["max_positions"]
        length = self.args.tokens_per_sample + window
        if limit is not None and length > limit and self.args.sample_break_mode in (None, "none"):
            raise InputError(
                f"--tokens-per-sample ({length}){f' with --context-window ({window})' if window else ''} is "
                f"longer than the model's {limit} positions; give --tokens-per-sample {limit}"
                f"{' and a --context-window below it' if window >= limit else ''}."
            )
        return stock(self, *args, **kwargs)

    return eval_lm_dataloader
