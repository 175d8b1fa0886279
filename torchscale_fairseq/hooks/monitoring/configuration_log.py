"""The configuration, a line of 8,000 characters that begins the log of each command, goes to log files alone.

Those are ``--log-file``, Hydra's and fairseq-preprocess's; each checkpoint holds the configuration as well.
"""

import logging
from argparse import Namespace
from collections.abc import Iterator

from omegaconf import DictConfig

COMMANDS = ("train", "generate", "interactive", "validate", "eval_lm", "preprocess")


def log_configuration_to_files() -> None:
    """Filter the log of each of fairseq's commands."""
    for command in COMMANDS:
        logging.getLogger(f"fairseq_cli.{command}").addFilter(only_to_files)


def only_to_files(record: logging.LogRecord) -> bool:
    """Whether a record takes its usual way; a configuration goes to the handlers that write files, and no further."""
    if not isinstance(record.msg, (DictConfig, Namespace)):
        return True
    for handler in _handlers(logging.getLogger(record.name)):
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
    return False


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None
