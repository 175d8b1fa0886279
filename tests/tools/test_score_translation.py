"""torchscale-fairseq score-translation: BLEU, chrF and exact match of translations."""

from pathlib import Path

import pytest
import sacrebleu

from tests.fairseq_cli import Finished
from tests.tools.in_process import run_tool

PROGRAM = "torchscale-fairseq score-translation"
REFERENCES = [
    "Die Prüfung beginnt am 3. März 2026.",
    "Das Konzert dauert von 18:05 bis 21:30 Uhr.",
    "Anna zog von Chile nach Peru.",
    "Paul zählte zwölf Sterne.",
]
OURS = [
    "Die Prüfung beginnt am 3. Mai 2026.",
    "Das Konzert dauert von 18:05 bis 21:30 Uhr.",
    "Anna zog von Chile nach Peru.",
    "Paul zählte elf Sterne.",
]
KINDS = ["times", "times", "places", "numbers"]
GENERATED = """\
2026-11-23 12:00:00 | INFO | fairseq_cli.generate | loading model(s) from checkpoint_best.pt
S-2\tAnna moved from Chile to Peru.
T-2\tAnna zog von Chile nach Peru.
H-2\t-0.1\t▁Anna ▁zog ▁von ▁Chile ▁nach ▁Peru .
D-2\t-0.1\tAnna zog von Chile nach Peru.
P-2\t-0.1 -0.1
D-2\t-0.7\tAnna zog nach Peru.
D-0\t-0.2\tDie Prüfung beginnt am 3. Mai 2026.
D-3\t-0.3\tPaul zählte elf Sterne.
D-1\t-inf\tDas Konzert dauert von 18:05 bis 21:30 Uhr.
Generate test with beam=5: BLEU4 = 70.00, 90.0/80.0/70.0/60.0 (BP=1.000, ratio=1.000, syslen=30, reflen=30)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, lines in (("reference", REFERENCES), ("plain", OURS), ("kinds", KINDS), ("source", "abcd")):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "generated").write_text(GENERATED)
    return tmp_path


def score(folder: Path, hypotheses: str, *options: object) -> Finished:
    return run_tool("score-translation", folder / hypotheses, "--reference", folder / "reference", *options)


def rows(done: Finished) -> dict[str, list[str]]:
    return {words[0]: words[1:] for words in map(str.split, done.check().stdout.splitlines()[1:])}


@pytest.mark.parametrize("hypotheses", ["generated", "plain"])
def test_scores_are_those_of_sacrebleu(folder: Path, hypotheses: str) -> None:
    bleu, chrf = sacrebleu.corpus_bleu(OURS, [REFERENCES]).score, sacrebleu.corpus_chrf(OURS, [REFERENCES]).score
    ((kind, (count, *found, exact)),) = rows(score(folder, hypotheses)).items()
    assert (kind, count, exact) == ("all", "4", "50.0%")
    assert [float(x) for x in found] == pytest.approx([bleu, chrf], abs=0.051)


def test_each_kind_is_scored_apart(folder: Path) -> None:
    table = rows(score(folder, "generated", "--kinds", folder / "kinds"))
    assert {kind: (row[0], row[-1]) for kind, row in table.items()} == {
        "numbers": ("1", "0.0%"),
        "places": ("1", "100.0%"),
        "times": ("2", "50.0%"),
        "all": ("4", "50.0%"),
    }
    assert table["places"][1:3] == ["100.0", "100.0"]


def test_samples_show_source_translation_and_reference(folder: Path) -> None:
    printed = score(folder, "generated", "--source", folder / "source", "--samples", 2).check().stdout
    assert [block.splitlines() for block in printed.split("\n\n")[1:]] == [
        [f"source     {source}", f"ours       {OURS[index]}", f"reference  {REFERENCES[index]}"]
        for index, source in ((0, "a"), (2, "c"))
    ]


def test_refuses_when_sentences_are_missing(folder: Path) -> None:
    (folder / "generated").write_text(GENERATED.replace("D-1", "X-1"))
    done = score(folder, "generated")
    assert done.returncode == 1
    assert "translations of 3 sentences, but --reference has 4 lines (sentence 1 is missing)" in done.last_line


def test_refuses_the_output_of_a_larger_test_set(folder: Path) -> None:
    (folder / "generated").write_text(GENERATED + "D-4\t-0.1\tNoch einer.\n")
    done = score(folder, "generated")
    assert done.returncode == 1
    assert "translations of 5 sentences, but --reference has 4 lines (sentence 4 is beyond it)" in done.last_line


@pytest.mark.parametrize("option", ["--kinds", "--source"])
def test_refuses_files_of_another_length(folder: Path, option: str) -> None:
    (folder / "short").write_text("one\n")
    done = score(folder, "plain", option, folder / "short")
    assert done.returncode == 1
    assert done.last_line == f"{PROGRAM}: {folder}/short has 1 lines, but --reference has 4"


def test_names_the_file_that_it_cannot_read(folder: Path) -> None:
    done = score(folder, "nowhere")
    assert done.returncode == 1
    assert done.last_line == f"{PROGRAM}: cannot read {folder}/nowhere: No such file or directory"
