"""scripts/recipes.tsv: the quick starts' values, as docs/recipes.md explains them."""

import json
import re
from collections import defaultdict
from fnmatch import fnmatchcase

import pytest

from tests.fairseq_cli import REPOSITORY, run_program
from torchscale_fairseq.models import _presets

ROWS = [line.split("\t") for line in (REPOSITORY / "scripts/recipes.tsv").read_text().splitlines()[1:]]
TRAINED = [
    *_presets.TRANSLATION,
    *_presets.RETENTION_TRANSLATION,
    *_presets.LANGUAGE,
    *_presets.MASKED,
    *_presets.RETENTION,
]


def recipe(architecture: str) -> list[str]:
    """Maximum of tokens, learning rate and warm-up."""
    return next(values for pattern, *values in ROWS if fnmatchcase(architecture, pattern))


def test_page_has_the_values_of_the_file() -> None:
    page = (REPOSITORY / "docs/recipes.md").read_text()
    table = re.findall(r"^\| `(\S+)` \| (\S+) \| (\S+) \| (\S+) \| ", page, flags=re.MULTILINE)
    assert [list(row) for row in table] == ROWS


def test_quick_starts_read_the_first_line_that_fits() -> None:
    code = 'source scripts/lib.sh; root=.; for arch; do read_recipe; echo "$arch $max_tokens $lr $warmup"; done'
    printed = run_program(["bash", "-c", code, "bash", *TRAINED]).check().stdout
    assert [line.split() for line in printed.splitlines()] == [[name, *recipe(name)] for name in TRAINED]


def measured() -> dict[str, dict[float, float]]:
    """By architecture the nll at each learning rate."""
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for run in json.loads((REPOSITORY / "docs/claims/learning_rates.json").read_text())["runs"]:
        found[run["architecture"]][run["learning_rate"]] = run["nll"]
    return found


@pytest.mark.parametrize("architecture", sorted(measured()))
def test_learning_rate_is_the_best_measured(architecture: str) -> None:
    nll = measured()[architecture]
    assert float(recipe(architecture)[1]) == min(nll, key=nll.__getitem__)
