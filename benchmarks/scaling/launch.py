"""How runs are started: torch's launcher, one process per GPU."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from torchscale_fairseq import plugin

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINER = ["fairseq_cli.train"]
LANGUAGE = ["--task", "language_modeling", "--share-decoder-input-output-embed", "--dropout", "0"]
LANGUAGE += ["--criterion", "linear_cross_entropy", "--required-batch-size-multiple", "1", "--disable-validation"]
ADAM = ["--optimizer", "adam", "--clip-norm", "1", "--lr"]


@dataclass(frozen=True)
class Place:
    """Where runs take place.

    Args:
        data: folder of binarised text.
        logs: folder for the output of each run.
        checkpoints: a folder that is removed afterwards.
        toy: small models on a CPU.
    """

    data: Path
    logs: Path
    checkpoints: Path
    toy: bool

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a run, which imports this repository, and packages from where this process does."""
        path = os.pathsep.join([str(REPOSITORY), *sys.path[1:]])
        return {"OMP_NUM_THREADS": "1" if self.toy else "4", "PYTHONPATH": path}

    def command(self, processes: int, program: list[str], words: list[str]) -> list[str]:
        """The words that start a training.

        Args:
            processes: their number.
            program: a module that is run as fairseq-train, and what comes before the options.
            words: options of fairseq-train.
        """
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        given = [str(self.data), "--user-dir", plugin.user_dir(), *LANGUAGE, *words, *(["--cpu"] if self.toy else [])]
        return [*launcher, "-m", *program, *given]
