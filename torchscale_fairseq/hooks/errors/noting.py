"""A process started for a command leaves the sentence of its error to the process that started it."""

import multiprocessing
import multiprocessing.util
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchscale_fairseq import plugin


def leave_ctrl_c_to_this_process() -> None:
    """Let processes forked from now on, such as the workers of data loaders, ignore SIGINT: this process ends them."""
    multiprocessing.util.register_after_fork(Noting, lambda _: signal.signal(signal.SIGINT, signal.SIG_IGN))


@dataclass(frozen=True)
class Noting:
    """A command's ``main`` that, in a process started for it, writes the sentence of an error to a file.

    Args:
        main: takes the configuration and more.
        note: the file; the first process to fail writes it.
    """

    main: Callable[..., Any]
    note: Path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if multiprocessing.parent_process() is None:
            return self.main(*args, **kwargs)
        self._register()
        main = getattr(sys.modules[self.main.__module__], self.main.__name__)  # this process may have replaced it
        try:
            return main(*args, **kwargs)
        except Exception as error:
            from torchscale_fairseq.hooks.errors.reporting import sentence_of

            sentence = sentence_of(error)
            if sentence is not None and not self.note.exists():
                self.note.write_text(sentence)
            raise
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it may come from the terminal and from the parent
            raise

    def _register(self) -> None:
        """Register this package, since fairseq imports nothing from a --user-dir that is imported already."""
        from fairseq.utils import import_user_module

        plugin.register()
        leave_ctrl_c_to_this_process()
        import_user_module.memo = {plugin.user_dir()}
