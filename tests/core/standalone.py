"""Python without fairseq."""

import subprocess
import sys
import textwrap


def run(code: str) -> str:
    """Run code in a fresh interpreter in which fairseq cannot be imported."""
    blocked = "import sys\nsys.modules['fairseq'] = None\n"
    done = subprocess.run([sys.executable, "-c", blocked + textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
