"""Reading: what a sample holds, that none is lost or read twice, resuming anywhere, and memory."""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch

from tests.data.corpora import made_corpus, opened, write_json
from tests.fairseq_cli import run_python
from torchscale_fairseq.data.text.batch_iterator import PretrainingIterator
from torchscale_fairseq.data.text.blocks import BREAK_MODES
from torchscale_fairseq.data.text.masking import Masking
from torchscale_fairseq.data.text.pretraining_dataset import PretrainingDataset

BOS, PAD, EOS = 0, 1, 2
MASKING = Masking(0.3, 1.0, 0.1, 0.1, mask=4, replacements=(4, 381))


def slow_tokens(data: Path, name: str) -> list[int]:
    """A shard's tokens by fairseq's rule: each line's pieces, as the dictionary numbers them, and </s>."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(data / "sentencepiece.bpe.model"))
    tokens: list[int] = []
    for line in (data / f"shard/train/{name}.txt").read_text().splitlines():
        if line:
            tokens += [piece + 1 for piece in tokenizer.encode(line)] + [EOS]  # <pad> comes before them
    return tokens


def rows(batch: dict[str, Any], part: str = "src_tokens") -> list[list[int]]:
    lengths = batch["net_input"]["src_lengths"].tolist()
    return [row[:length] for row, length in zip(batch["net_input"][part].tolist(), lengths, strict=True)]


@pytest.mark.parametrize("break_mode", BREAK_MODES)
def test_samples_hold_the_text(break_mode: str, corpus_folder: Path) -> None:
    dataset = opened(corpus_folder, break_mode=break_mode, seed=None)
    batch = dataset.batch(0, 0, len(dataset))
    targets = [row[row != PAD].tolist() for row in batch["target"]]
    assert max(map(len, targets)) <= 31
    assert list(chain(*targets)) == list(chain(*(slow_tokens(corpus_folder, name) for name in "abc")))
    assert rows(batch) == [[EOS, *target[:-1]] for target in targets]
    assert batch["ntokens"] == sum(map(len, targets)) and batch["nsentences"] == len(targets)


def test_lines_longer_than_a_sample_and_than_a_unit(tmp_path: Path, corpus_folder: Path) -> None:
    data = made_corpus(tmp_path / "data")
    line = " ".join((data / "shard/train/b.txt").read_text().split())
    (data / "shard/train/b.txt").write_text(line + "\n")
    for break_mode in BREAK_MODES:
        dataset = opened(data, break_mode=break_mode, seed=None)
        batch = dataset.batch(0, 0, len(dataset))
        targets = [row[row != PAD].tolist() for row in batch["target"]]
        assert list(chain(*targets)) == list(chain(*(slow_tokens(data, name) for name in "abc")))


def test_masked_samples(corpus_folder: Path) -> None:
    causal = opened(corpus_folder)
    masked = opened(corpus_folder, masking=MASKING)
    batch, plain = masked.batch(0, 0, len(masked)), causal.batch(0, 0, len(masked))
    source, target = batch["net_input"]["src_tokens"], batch["target"]
    assert (source[:, 0] == BOS).all() and (target[:, 0] == PAD).all()
    original = torch.where(target == PAD, source, target)[:, 1:]
    assert torch.equal(original, plain["target"])
    predicted = target != PAD
    assert not (predicted & (source == PAD)).any()
    assert 0.29 < predicted.sum() / (original != PAD).sum() < 0.32
    assert 0.75 < (source[predicted] == 4).float().mean() < 0.85


def test_masks_change_by_epoch_and_not_by_batch(corpus_folder: Path) -> None:
    dataset = opened(corpus_folder, masking=MASKING)
    whole = {tuple(row) for row in rows(dataset.batch(0, 0, 40))}
    assert {tuple(row) for start in (0, 13, 26) for row in rows(dataset.batch(0, start, min(start + 13, 40)))} <= whole
    other = {tuple(row) for epoch in (1, 2) for row in rows(dataset.batch(epoch, 0, len(dataset)))}
    assert len(whole & other) <= 1


def test_padding_to_the_longest_sample(corpus_folder: Path) -> None:
    dataset = opened(corpus_folder, break_mode="eos")
    dataset._pad_to = 50
    assert dataset.batch(0, 0, 3)["target"].shape == (3, 50)


def batches_of(
    dataset: PretrainingDataset,
    processes: int = 1,
    *,
    state: dict[str, Any] | None = None,
    take: int | None = None,
    **o: Any,
) -> tuple[list[list[list[int]]], dict[str, Any]]:
    """What each step of an epoch gives to all processes: the samples' ids and what is read of them; and the state."""
    iterators = [PretrainingIterator(dataset, num_shards=processes, shard_id=rank, **o) for rank in range(processes)]
    streams = []
    for iterator in iterators:
        if state is not None:
            iterator.load_state_dict(state)
        streams.append(iterator.next_epoch_itr())
    assert len({len(stream) for stream in streams}) == 1
    steps: list[list[list[int]]] = []
    while streams[0].has_next() and (take is None or len(steps) < take):
        step = []
        for stream in streams:
            batch = next(stream)
            if batch:
                tokens = rows(batch)
                step += [[number, *row] for number, row in zip(batch["id"].tolist(), tokens, strict=True)]
        steps.append(step)
    states = [iterator.state_dict() for iterator in iterators]
    assert all(other == states[0] for other in states)
    return steps, states[0]


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 2), (3, 0), (2, 3)])
def test_no_sample_is_read_twice_or_lost(processes: int, workers: int, corpus_folder: Path) -> None:
    dataset = opened(corpus_folder, masking=MASKING)
    steps, state = batches_of(dataset, processes, batch_size=7, num_workers=workers)
    ids = Counter(sample[0] for step in steps for sample in step)
    assert set(ids) == set(range(len(dataset.corpus))) and set(ids.values()) == {1}
    assert state["epoch"] == 2 and state["iterations_in_epoch"] == 0
    alone, _ = batches_of(dataset, 1, batch_size=7 * processes)
    assert steps == alone


@pytest.mark.parametrize(
    ("processes", "batch_size", "workers"), [(1, 6, 0), (2, 3, 0), (3, 2, 2), (1, 4, 0), (2, 4, 0)]
)
def test_resuming_goes_on_with_the_same_samples(
    processes: int, batch_size: int, workers: int, corpus_folder: Path
) -> None:
    """Two processes with batches of 3 stop after 5 steps; any number of processes, workers and batch size goes on."""
    dataset = opened(corpus_folder, masking=MASKING)
    whole, _ = batches_of(dataset, 2, batch_size=3)
    _, state = batches_of(dataset, 2, batch_size=3, take=5)
    assert state == {"version": 2, "epoch": 1, "iterations_in_epoch": 5, "samples_in_epoch": 30, "shuffle": True}
    rest, ended = batches_of(
        opened(corpus_folder, masking=MASKING), processes, state=state, batch_size=batch_size, num_workers=workers
    )
    if batch_size * processes == 6:
        assert rest == whole[5:]
    assert list(chain(*rest)) == list(chain(*whole[5:]))
    assert ended["epoch"] == 2


def test_a_number_of_processes_that_does_not_divide_the_place(corpus_folder: Path) -> None:
    """fairseq groups batches into updates by their number, which starts anew where it does not fit."""
    dataset = opened(corpus_folder)
    _, state = batches_of(dataset, 1, batch_size=4, take=7)
    iterator = PretrainingIterator(dataset, batch_size=4, num_shards=2, update_freq=2)
    iterator.load_state_dict(state)
    stream = iterator.next_epoch_itr()
    assert stream.n == 0 and len(stream) == -(-(len(dataset) - 28) // 8)
    assert next(stream)["id"].tolist() == dataset.batch(0, 28, 32)["id"].tolist()
    assert iterator.state_dict()["samples_in_epoch"] == 36


def test_the_next_epoch_begins_at_its_beginning(corpus_folder: Path) -> None:
    dataset = opened(corpus_folder)
    iterator = PretrainingIterator(dataset, batch_size=20)
    iterator.load_state_dict({"epoch": 1, "iterations_in_epoch": 2, "samples_in_epoch": 40})
    assert iterator.next_epoch_idx == 1
    for _ in iterator.next_epoch_itr():
        pass
    assert iterator.next_epoch_idx == 2
    second = iterator.next_epoch_itr()
    assert iterator.epoch == 2 and len(second) == -(-len(dataset) // 20)
    assert next(second)["id"].tolist() == dataset.batch(1, 0, 20)["id"].tolist()


def test_the_remainder_of_an_epoch_may_be_left_out(corpus_folder: Path) -> None:
    dataset = opened(corpus_folder)
    steps, _ = batches_of(dataset, 2, batch_size=5, skip_remainder_batch=True)
    assert [len(step) for step in steps] == [10] * (len(dataset) // 10)
    iterator = PretrainingIterator(dataset, batch_size=60, num_shards=2, skip_remainder_batch=True)
    iterator.load_state_dict({"epoch": 1, "iterations_in_epoch": 9, "samples_in_epoch": len(dataset) - 3})
    assert iterator.epoch == 2 and next(iterator.next_epoch_itr())["nsentences"] == 60


def test_more_processes_than_batches(corpus_folder: Path) -> None:
    dataset = opened(corpus_folder, "valid", seed=None)
    steps, _ = batches_of(dataset, 50, batch_size=1)
    assert len(steps) == 1 and len(steps[0]) == len(dataset)
    assert PretrainingIterator(dataset, batch_size=1, num_shards=50, shard_id=49).first_batch["nsentences"] == 1


def test_weights_of_sources(tmp_path: Path) -> None:
    data = made_corpus(tmp_path / "data")
    sources = [
        {"source": ["shard/train/a.txt"], "source_lang": "en", "weight": 1, "name": "first"},
        {"source": ["shard/train/b.txt", "shard/train/c.txt"], "source_lang": "de", "weight": 3, "name": "second"},
    ]
    write_json(data, "train", sources)
    dataset = opened(data)
    first = int(dataset.corpus.samples[0].sum())
    steps, _ = batches_of(dataset, batch_size=8)
    counts = Counter(sample[0] for step in steps for sample in step)
    of_first = sum(count for number, count in counts.items() if number < first)
    assert of_first == round(len(dataset) / 4) and sum(counts.values()) == len(dataset)
    assert max(np.ptp([counts[n] for n in numbers]) for numbers in (range(first), range(first, len(dataset)))) <= 1


MEMORY_TEST = """
    import random, resource, sys
    from pathlib import Path
    from tests.data.corpora import made_line, opened, write_json
    from torchscale_fairseq.data.text.batch_iterator import PretrainingIterator

    data, megabytes = Path({data!r}), {megabytes}
    generator = random.Random(1)
    block = "".join(made_line(generator) + "\\n" * (1 + (n % 9 == 8)) for n in range(20_000))
    with (data / "shard/train/large.txt").open("w") as file:
        for _ in range(megabytes * 1_000_000 // len(block)):
            file.write(block)
    write_json(data, "train", [{{"source": ["shard/train/large.txt"], "source_lang": "en"}}])
    opened(data, "valid")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dataset = opened(data, capacity=255, read_ahead=2000)
    iterator = PretrainingIterator(dataset, batch_size=32)
    tokens = sum(batch["ntokens"] for batch in iterator.next_epoch_itr())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("MEASURED", (data / "shard/train/large.txt").stat().st_size, tokens, (after - before) * 1024)
"""


def streamed(data: Path, megabytes: int) -> tuple[int, int, int]:
    """Bytes of a corpus of one shard, tokens read from it, and what memory grew by meanwhile."""
    done = run_python(MEMORY_TEST.format(data=str(data), megabytes=megabytes), timeout=900).check()
    size, tokens, grown = done.stdout.split("MEASURED")[1].split()
    return int(size), int(tokens), int(grown)


@pytest.mark.parametrize("megabytes", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_memory_is_bounded_by_the_read_ahead(megabytes: int, tmp_path: Path) -> None:
    """Of one shard."""
    size, tokens, grown = streamed(made_corpus(tmp_path / "data"), megabytes)
    assert size > 0.95 * megabytes * 1e6 and tokens > size / 10
    assert grown < 96e6, f"{grown:,} bytes for a corpus of {size:,}"
