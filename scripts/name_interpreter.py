#!/usr/bin/env python
"""Makes fairseq's programs name the Python that runs them where it has no fairseq.

usage: name_interpreter.py PROGRAM...

``torchrun fairseq-train`` runs the program by the Python of torchrun, which may belong to another environment. Without
these lines the program then ends with ``No module named 'fairseq_cli'``. setup.sh calls this script.
"""

import sys
from pathlib import Path

MARK = "# by scripts/name_interpreter.py of torchscale_fairseq\n"
CHECK = """import importlib.util
import sys
from pathlib import Path
if importlib.util.find_spec("fairseq_cli") is None:
    here = Path(__file__).absolute()
    sys.exit(
        f"{here.name}: {sys.executable} runs it, which has no fairseq: the program belongs to {here.parent}; start "
        f"several processes by {here.parent}/python -m torch.distributed.run --no-python {here.name} ..."
    )
"""


def name_interpreter(program: Path) -> None:
    """Put the check behind the first line of a program, unless it is there."""
    text = program.read_text()
    if MARK not in text:
        first, rest = text.split("\n", 1)
        program.write_text(f"{first}\n{MARK}{CHECK}{rest}")


if __name__ == "__main__":
    for path in sys.argv[1:]:
        name_interpreter(Path(path))
