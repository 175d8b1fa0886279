"""Options that stock fairseq's commands set or need without reason."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from torchscale_fairseq.hooks.stock import precision


def keep_bf16_off_the_tpu(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--bf16`` and ``--memory-efficient-bf16`` on the command line also set ``tpu``, and fail without
    torch_xla. ``tpu`` now stays off unless ``--tpu`` was given or torch_xla is installed."""
    if find_spec("torch_xla") is not None:
        return stock

    def parse_args_and_arch(parser: Any, input_args: Any = None, *args: Any, **kwargs: Any) -> Any:
        words = sys.argv[1:] if input_args is None else input_args
        precision.check_words(words)
        result = stock(parser, input_args, *args, **kwargs)
        parsed = result[0] if isinstance(result, tuple) else result
        if getattr(parsed, "tpu", False) and "--tpu" not in words:
            parsed.tpu = False
        return result

    return parse_args_and_arch


def validate_without_naming_a_task(stock: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq-validate fails without ``--task``, though it takes the task from the checkpoint. Its arguments are
    now read as those of a translation task, as in every other command."""

    def parse_args_and_arch(parser: Any, *args: Any, **kwargs: Any) -> Any:
        if any(action.dest == "task" and action.default is None for action in parser._actions):
            parser.set_defaults(task="translation")
        return stock(parser, *args, **kwargs)

    return parse_args_and_arch
