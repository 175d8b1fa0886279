"""How the tests are laid out."""

import re

from tests.fairseq_cli import REPOSITORY

OF_A_TEST_MODULE = re.compile(
    r"(?:from|import) (?:tests\.|\.)(?:\w+\.)*test_\w+|from (?:tests|\.)[\w.]* import test_\w+"
)


def test_helpers_live_in_helper_modules() -> None:
    """No test module is imported, by lines of Python in strings neither."""
    imports = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for folder in ("tests", "scripts", "benchmarks")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if OF_A_TEST_MODULE.search(line)
    ]
    assert not imports
