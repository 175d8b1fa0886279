"""fairseq's commands end with one sentence on stderr where the user can mend the cause (docs/errors.md).

In one process, Python's ``excepthook`` prints it. Hydra catches errors itself, so its result of a failed job is
replaced. Several processes leave the sentence in a file for the process that started them.
"""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.core.utils import JobStatus
from torch.multiprocessing.spawn import ProcessException

from torchscale_fairseq.core import reporting
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.errors import noting, stock_errors
from torchscale_fairseq.hooks.options import surfaces
from torchscale_fairseq.hooks.running import module_name, package_of


def report_errors_of_this_process() -> None:
    """Report errors by sentences if one of fairseq's commands is running; programs in Python keep their tracebacks."""
    if within_a_command():
        sys.excepthook = _with_sentences(sys.excepthook)
        noting.leave_ctrl_c_to_this_process()


def within_a_command() -> bool:
    """Whether this is called from one of fairseq's commands."""
    frame: Any = sys._getframe()
    while frame is not None:
        if package_of(frame.f_globals) == "fairseq_cli":
            return True
        frame = frame.f_back
    return False


def sentence_of(error: BaseException) -> str | None:
    """The sentence to show for an error, or None for one that only a traceback explains or if tracebacks are
    requested."""
    if reporting.wants_traceback():
        return None
    if isinstance(error, OptionError):
        surfaces.spell(error)
    return stock_errors.sentence_of(error) or reporting.sentence_of(error)


def _with_sentences(stock: Callable[..., Any]) -> Callable[..., Any]:
    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
        if isinstance(error, KeyboardInterrupt):
            reporting.print_sentence(interruption(error))
            raise SystemExit(reporting.INTERRUPTED)
        sentence = sentence_of(error)
        if sentence is None:
            return stock(kind, error, trace)
        return reporting.print_sentence(sentence)

    return excepthook


def interruption(error: BaseException) -> str:
    """The sentence after Ctrl-C; in training it says which checkpoint is kept."""
    frames = stock_errors.frames_of(error)
    configs = [frame.f_locals["cfg"] for frame in frames if "checkpoint" in frame.f_locals.get("cfg", ())]
    if not configs or not any(module_name(frame.f_globals) == "fairseq_cli.train" for frame in frames):
        return "interrupted by Ctrl-C"
    last = Path(configs[0].checkpoint.save_dir) / "checkpoint_last.pt"
    if last.exists():
        return f"interrupted by Ctrl-C; {last} is kept, and the same command resumes from it"
    return f"interrupted by Ctrl-C; there is no {last}, so the same command starts from the beginning"


def report_errors_of_hydra(stock: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``JobReturn.return_value``, which raises the error of a job that failed."""

    def return_value(job: Any) -> Any:
        sentence = sentence_of(job._return_value) if job.status == JobStatus.FAILED else None
        if sentence is None:
            return stock(job)
        reporting.print_sentence(sentence)
        sys.exit(reporting.FAILED)

    return return_value


def report_errors_of_processes(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.distributed.utils.call_main``, whose processes leave the sentence of an error to this one."""

    def call_main(cfg: Any, main: Callable[..., Any], **kwargs: Any) -> Any:
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns that it ends the others
        with tempfile.TemporaryDirectory() as folder:
            note = Path(folder) / "sentence"
            try:
                return stock(cfg, noting.Noting(main, note), **kwargs)
            except ProcessException:
                if note.exists():
                    raise InputError(note.read_text()) from None
                raise
            except KeyboardInterrupt:
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGINT)
                raise

    return call_main
