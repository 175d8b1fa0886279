"""Precision flags do what they say, or say that they do not."""

import logging
from typing import Any

logger = logging.getLogger(__name__)


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
