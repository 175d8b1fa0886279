"""Python without fairseq."""

import subprocess
import sys
import textwrap

BLOCKED = "import sys\nsys.modules['fairseq'] = None\n"
NOTHING_DRAWN = "import torch\ntorch.Tensor.uniform_ = torch.Tensor.normal_ = lambda self, *_, **__: self\n"
"""Models of full size keep the memory that they get: drawing half a billion initial values takes most of their time."""


def run(code: str, before: str = "") -> str:
    """Run code in a fresh interpreter in which fairseq cannot be imported.

    Args:
        before: lines of Python to run first, such as NOTHING_DRAWN.
    """
    lines = BLOCKED + before + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
