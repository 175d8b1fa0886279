"""torchscale-fairseq perplexity: figures per token and per byte from what fairseq-eval-lm printed."""

from pathlib import Path

import pytest
import sentencepiece

from tests.fairseq_cli import Finished
from tests.tools.in_process import run_tool

TEXT = "die Prüfung\n\nab\n"
BYTES = 12 + 1 + 1 + 3
TOKENS = (12 + 1) + 1 + (3 + 1)
"""A piece for each character and each word's beginning, and </s> for each line."""
PRINTED = """\
INFO:fairseq_cli.eval_lm:Evaluated 18 tokens in 28.6s (1312.67 tokens/s)
INFO:fairseq_cli.eval_lm:Loss (base 2): 3.4000, Perplexity: 10.56
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What data prepare-language writes, as far as it matters here."""
    folder = tmp_path_factory.mktemp("data")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["die Prüfung ab"] * 200),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=14,
        model_type="char",
        minloglevel=2,
    )
    (folder / "raw").mkdir()
    (folder / "raw/test.txt").write_text(TEXT, encoding="utf-8")
    return folder


def perplexity(log: Path, data: Path) -> Finished:
    return run_tool("perplexity", log, "--data", data)


def refuses(message: str, log: Path, data: Path) -> None:
    done = perplexity(log, data)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"torchscale-fairseq perplexity: {message}")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "eval-lm.log"
    path.write_text(PRINTED)
    return path


def test_figures(log: Path, data: Path) -> None:
    per_byte = 3.4 * TOKENS / BYTES
    header, *rows = [line.split() for line in perplexity(log, data).check().stdout.splitlines()]
    assert header == ["count", "perplexity", "bits"]
    assert [row[:3] for row in rows] == [["per", "token", f"{TOKENS}"], ["per", "byte", f"{BYTES}"]]
    for (*_, found, found_bits), bits in zip(rows, (3.4, per_byte), strict=True):
        assert float(found) == pytest.approx(2**bits, abs=0.0051) and float(found_bits) == pytest.approx(bits, abs=6e-4)


def test_the_last_evaluation_counts(log: Path, data: Path) -> None:
    log.write_text(PRINTED.replace("18", "1,234").replace("3.4", "5.6") + PRINTED)
    assert " 3.400" in perplexity(log, data).check().stdout


@pytest.mark.parametrize("scored", ["17", "1,018"])
def test_refuses_when_not_all_is_scored(scored: str, log: Path, data: Path) -> None:
    log.write_text(PRINTED.replace("18", scored))
    count = scored.replace(",", "")
    refuses(f"fairseq-eval-lm scored {count} tokens, but {data}/raw/test.txt has 18; run it on the test set", log, data)


def test_refuses_a_log_without_figures(log: Path, data: Path) -> None:
    log.write_text(PRINTED.splitlines()[0])
    refuses(f"{log} has no 'Evaluated ... tokens' and 'Loss (base 2)'", log, data)


def test_names_the_file_that_it_cannot_read(log: Path, data: Path, tmp_path: Path) -> None:
    refuses(f"cannot read {tmp_path}/nowhere: No such file or directory", tmp_path / "nowhere", data)
    refuses(f"cannot read {tmp_path}/raw/test.txt: No such file or directory", log, tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/test.txt").write_text(TEXT)
    refuses(f"cannot read {tmp_path}/sentencepiece.bpe.model", log, tmp_path)
