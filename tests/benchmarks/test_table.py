"""benchmarks/table.py: rows are measured once, each within its time limit."""

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

import pytest

pytest.importorskip("fairseq")

from benchmarks import decoding, filling, first_update, retention_inputs, table, table_rows, throughput
from benchmarks.several_gpus import Gpus
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
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
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


def test_a_row_that_takes_too_long_leaves_its_logs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLES, "training", [row(seconds=1)])
    program = "echo measuring; echo update 50 > $0/small.log; sleep 30"
    monkeypatch.setattr(table, "command", lambda row, options, logs: ["sh", "-c", program, str(logs)])
    assert table.main(["training", "--toy", "--folder", str(folder)]) == 1
    assert (folder / "made.failed").read_text() == f"measuring\n\n{folder}/made/small.log:\nupdate 50\n"


def test_logs_of_fairseq_train_go_to_the_folder_of_the_row(tmp_path: Path) -> None:
    options = argparse.Namespace(data=None, toy=False)
    for one in table_rows.TRAINING:
        words = table.command(one, options, tmp_path)[3:]
        assert ("--logs" in words) == (one.words[0] == "throughput")
        if "--logs" in words:
            assert throughput.parse_options(words).logs == tmp_path


def test_caches_are_filled_before_rows_are_measured(folder: Path) -> None:
    """By rows that are missing, whose output does not count."""
    for runs in (2, 2):
        assert table.main(["training", "--toy", "--folder", str(folder), "--fill", "3"]) == 0
        assert (folder / "runs").read_text() == "run\n" * runs
    assert not table_rows.ARCHITECTURES[0].has_own_caches
    assert [one.name for one in table_rows.TRAINING if one.has_own_caches] == ["start-7b"]


def test_filling_ends_in_time_and_keeps_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs fail, take too long or never start."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "users.best_config").touch()
    filling.use_own_cache()
    cache = tmp_path / "benchmarks"
    cache.mkdir()
    for name in ("code.py", "code.best_config"):
        (cache / name).touch()
    start = time.monotonic()
    filling.fill([(1, ["false"]), (1, ["sleep", "30"]), (1, ["touch", str(tmp_path / "late")])], at_once=1, seconds=0.5)
    assert time.monotonic() - start < 20
    assert [path.name for path in cache.iterdir()] == ["code.py"]
    assert (tmp_path / "users.best_config").exists() and not (tmp_path / "late").exists()


def test_rows_that_fill_caches_share_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    programs = [f"echo $CUDA_VISIBLE_DEVICES > {tmp_path}/{place}" for place in range(3)]
    needed = (1, 1, 2)
    filling.fill([(n, ["sh", "-c", program]) for n, program in zip(needed, programs, strict=True)], 3, 60, gpus=2)
    assert [(tmp_path / str(place)).read_text() for place in range(3)] == ["0\n", "1\n", "\n"]


def test_gpus_are_taken_in_order_and_given_back() -> None:
    """A job that needs both waits for both, and is not overtaken; one that fails gives its GPU back."""
    begun: list[tuple[str, Sequence[int]]] = []
    apart = Event()

    def job(name: str, devices: Sequence[int]) -> None:
        begun.append((name, sorted(devices)))
        if name == "first":
            apart.wait(60)
        elif name == "second":
            apart.set()

    jobs = [(1, "first"), (1, "second"), (2, "both"), (1, "last")]
    Gpus(2).run_each([(needed, partial(job, name)) for needed, name in jobs], time.monotonic() + 60)
    assert begun[:3] == [("first", [0]), ("second", [1]), ("both", [0, 1])] and begun[3][0] == "last"
    gpus = Gpus(1)
    with pytest.raises(ZeroDivisionError):
        gpus.run_each([(1, lambda devices: 1 // 0)], time.monotonic() + 60)
    assert gpus.take(1, 0.0) == [0] and gpus.take(1, 0.0) is None


def test_no_row_begins_when_the_time_of_the_call_is_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TABLES, "training", [row(), replace(row(), name="late", work="late work")])
    monkeypatch.setattr(table, "command", lambda *_: ["sleep", "30"])
    assert table.main(["training", "--toy", "--folder", str(folder), "--within", "1"]) == 1
    assert "| late work | 1.0 | not measured |" in capsys.readouterr().out


def test_filling_ends_with_the_time_of_the_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "command", lambda *_: ["sleep", "30"])
    begun = time.monotonic()
    assert table.main(["training", "--toy", "--folder", str(folder), "--fill", "1", "--within", "1"]) == 0
    assert time.monotonic() - begun < 20


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
    for rows in TABLES.values():
        assert len({one.name for one in rows}) == len(rows)
        for words in (words for one in rows for words in (one.words, one.toy) if words[0] in PARSERS):
            assert PARSERS[words[0]](words[1:])


def test_rows_of_the_example_exist() -> None:
    (names,) = re.findall(r"(\w+) --rows ((?:[\w-]+ )+)--", table.__doc__ or "")
    assert set(names[1].split()) <= {one.name for one in TABLES[names[0]]}


def test_variants_of_a_case() -> None:
    options = argparse.Namespace(family="gpt_magneto", precision="bf16", dropout=0.0)
    case = Case.of("base:16x1024,gpt_xpos,fp16,update-freq=4,dropout=0.1,gpus=2")
    words = " ".join(case.words(options))
    assert "--arch gpt_xpos " in words and words.endswith("--fp16") and "--dropout 0.1" in words
    assert "--update-freq 4 --distributed-world-size 2" in words and case.tokens_of_update == 8 * case.tokens
    masked = " ".join(Case.of("base:16x1024,bert_magneto").words(options))
    assert "--task masked_lm" in masked and "--max-source-positions 1024" in masked and masked.endswith("--bf16")
    assert "--dropout 0.0 --attention-dropout 0.0" in masked and "--attention-dropout" not in words
    assert Case.of("7b:1x2048,retnet,eager").eager
    with pytest.raises(argparse.ArgumentTypeError, match=r"'fp61' is none of .*; try fp16"):
        Case.of("base:16x1024,fp61")
