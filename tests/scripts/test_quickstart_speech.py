"""scripts/quickstart_speech.sh: its options, and (slow) the whole of what it does."""

import re
import shutil
from pathlib import Path

import pytest

from tests.fairseq_cli import REPOSITORY, run_program

QUICKSTART = REPOSITORY / "scripts/quickstart_speech.sh"


def test_help_names_every_option() -> None:
    printed = run_program([QUICKSTART, "--help"]).check().stdout
    for option in ("--translate", "--arch", "--max-update", "--gpu", "--work-dir"):
        assert f"  {option} " in printed
    assert run_program(["bash", QUICKSTART, "--translate", "--help"]).check().stdout == printed


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--translate"]])
def test_both_models_are_scored(words: list[str], tmp_path: Path) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng")
    options = [*words, "--work-dir", tmp_path, "--max-update", "2"]
    printed = run_program([QUICKSTART, *options], timeout=1500).check().stdout
    score = r"BLEU = " if words else r"WER: "
    arch = "s2t_swiglu_small" if words else "s2t_magneto_small"
    assert re.search(rf"^{arch} +{score}[\d.]+", printed, re.MULTILINE)
    assert re.search(rf"^s2t_transformer_xs +{score}[\d.]+", printed, re.MULTILINE)
    assert bool(words) == bool(re.search(r"^cascade +BLEU = [\d.]+", printed, re.MULTILINE))
