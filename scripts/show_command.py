"""Print a command as one would type it: python3 scripts/show_command.py WORD... (Needs no package, for setup.sh.)"""

import shlex
import sys
from collections.abc import Sequence

WIDTH = 98
PIPES = ("|&",)
"""Words of the shell itself, which are not quoted."""


def as_typed(words: Sequence[str]) -> str:
    """The command in lines of at most 100 characters, where that is possible, which keep options with their values."""
    lines = [words[0]]
    for group in _groups(words[1:]):
        text = " ".join(word if word in PIPES else shlex.quote(word) for word in group)
        if len(lines[-1]) + 1 + len(text) >= WIDTH:
            lines.append("   ")
        lines[-1] += f" {text}"
    return " \\\n".join(lines)


def _groups(words: Sequence[str]) -> list[list[str]]:
    """An option with its first value, and every other word alone."""
    groups: list[list[str]] = []
    for word in words:
        if groups and groups[-1][-1].startswith("--") and not word.startswith("--"):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


if __name__ == "__main__":
    print(as_typed(sys.argv[1:]))
