"""Precision flags do what they say, or say that they do not."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fairseq import utils
from torch import Tensor, nn

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.hooks.generation.loading import after_loading

logger = logging.getLogger(__name__)


def check_flags(common: Any) -> None:
    """Refuse flags of which fairseq would heed only one.

    Args:
        common: fairseq's common options.

    Raises:
        InputError: with the flags that were given.
    """
    check_words([f"--{flag}" for flag in ("fp16", "bf16", "amp") if getattr(common, flag)])


def check_words(words: Sequence[str]) -> None:
    """Refuse such flags on a command line; fairseq itself would complain of a ``--tpu`` that nobody gave.

    Args:
        words: flags and others.

    Raises:
        InputError: with the flags that were given.
    """
    given = [flag for flag in ("--fp16", "--bf16", "--amp") if flag in words]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other; give one of them.")


def warn_of_training_on_cpu(common: Any) -> None:
    """Log what half precision costs in training on a CPU.

    Args:
        common: fairseq's common options.
    """
    if common.amp:
        logger.warning("--amp has no effect on a CPU: the model trains in float32")
    elif common.fp16 or common.bf16:
        flag = "--fp16" if common.fp16 else "--bf16"
        logger.warning(f"{flag} trains several times slower on a CPU than float32; leave it out to train faster")


@contextmanager
def in_evaluation(common: Any) -> Iterator[None]:
    """Meanwhile every model that is loaded computes as ``--fp16`` or ``--bf16`` says, also of inputs that are images or
    sound. Stock passes over ``--bf16`` and fails on float32 inputs of float16 models.

    Args:
        common: fairseq's common options.

    Raises:
        InputError: flags exclude each other.
    """
    check_flags(common)
    if common.amp:
        logger.warning("--amp is for training alone: this command computes in float32; give --fp16 or --bf16 instead")
    dtype = torch.float16 if common.fp16 else torch.bfloat16 if common.bf16 else None
    if dtype is None:
        yield
        return

    def convert(models: Any, cfg: Any, task: Any) -> None:
        for model in models:
            model.to(dtype).register_forward_pre_hook(_cast_inputs, with_kwargs=True)

    with after_loading(convert):
        yield


def _cast_inputs(model: nn.Module, args: Any, kwargs: Any) -> Any:
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.dtype == torch.float32 else x

    return utils.apply_to_sample(cast, (args, kwargs))
