"""benchmarks/table.py: rows are measured once, each within its time limit."""

import argparse
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from benchmarks import decoding, first_update, retention_inputs, table, table_rows, throughput
from benchmarks.table_rows import TABLES, Row
from benchmarks.throughput_cases import Case

PARSERS = {
    "throughput": throughput.parse_options,
    "first_update": first_update.parse_options,
    "decoding": decoding.parse_options,
    "retention_inputs": retention_inputs.parse_options,
}
PRINTED = "| | ms | ratio |\n|---|---|---|\n| ours | 2.00 | 1.5 |\n| theirs | 3.00 | |\n"


def row(seconds: int = 60) -> Row:
    return Row("made", "some work", "1.0", ("ratio",), ["made_up"], ["made_up"], seconds=seconds)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the only benchmark is a program that says that it ran."""
    monkeypatch.setitem(TABLES, "training", [row()])
    monkeypatch.setattr(table, "command", lambda *_: ["sh", "-c", f"echo run >> {tmp_path}/runs; printf '{PRINTED}'"])
    return tmp_path


def test_a_row_is_measured_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert table.main(["training", "--toy", "--folder", str(folder)]) == 0
        assert "| some work | 1.0 | ours: 1.5; theirs:  | 0 |" in capsys.readouterr().out
    assert (folder / "runs").read_text() == "run\n"


def test_rows_that_fail_or_take_too_long_are_measured_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TABLES, "training", [row(seconds=1)])
    for program, problem in (("echo broken; exit 3", "failed: broken"), ("sleep 30", "took longer than 1 s")):
        monkeypatch.setattr(table, "command", lambda *_, program=program: ["sh", "-c", program])
        assert table.main(["training", "--toy", "--folder", str(folder)]) == 1
        assert f"| some work | 1.0 | {problem} |" in capsys.readouterr().out
    assert (folder / "made.failed").exists() and not (folder / "made.txt").exists()


def test_rows_that_cannot_be_measured_here_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = Row("made", "some work", "1.0", (), ["translation", "DATA"], [], gpus=99)
    options = argparse.Namespace(data=None, toy=False)
    assert "needs --data DIR" in str(table.refusal(many, options))
    options.data = folder
    assert table.refusal(many, options) == "needs 99 GPUs"
    with pytest.raises(SystemExit):
        table.main(["training", "--rows", "nothing"])
    assert "--rows nothing: the table has made" in capsys.readouterr().err


def test_rows_have_names_of_their_own_and_cases_that_are_read() -> None:
    for rows in (table_rows.TRAINING, table_rows.ARCHITECTURES):
        assert len({one.name for one in rows}) == len(rows)
        for words in (words for one in rows for words in (one.words, one.toy) if words[0] in PARSERS):
            assert PARSERS[words[0]](words[1:])


def test_variants_of_a_case() -> None:
    options = argparse.Namespace(family="gpt_magneto", precision="bf16", dropout=0.0)
    case = Case.of("base:16x1024,gpt_xpos,fp16,update-freq=4,dropout=0.1,gpus=2")
    words = " ".join(case.words(options))
    assert "--arch gpt_xpos " in words and words.endswith("--fp16") and "--dropout 0.1" in words
    assert "--update-freq 4 --distributed-world-size 2" in words and case.tokens_of_update == 8 * case.tokens
    masked = " ".join(Case.of("base:16x1024,bert_magneto").words(options))
    assert "--task masked_lm" in masked and "--max-source-positions 1024" in masked and masked.endswith("--bf16")
    assert Case.of("7b:1x2048,retnet,eager").eager
    with pytest.raises(argparse.ArgumentTypeError, match=r"'fp61' is none of .*; try fp16"):
        Case.of("base:16x1024,fp61")
