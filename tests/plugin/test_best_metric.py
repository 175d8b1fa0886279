"""``--best-checkpoint-metric`` is looked up in a batch of validation, which then reads all of them."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.data import FairseqDataset, iterators
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask

from torchscale_fairseq import plugin
from torchscale_fairseq.hooks.stock.best_metric import figures_of_a_batch

plugin.register()
BATCHES = 8
SECONDS = 0.05
"""For a batch, so that most are still to be read when the first has been measured."""


class SlowNumbers(FairseqDataset):
    """The numbers from 0 on."""

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(SECONDS)
        return torch.tensor(index)

    def __len__(self) -> int:
        return BATCHES

    def num_tokens(self, index: int) -> int:
        return 1

    def collater(self, samples: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(samples)


class Trainer:
    """What the check asks fairseq's trainer for."""

    def __init__(self, workers: int) -> None:
        self.cfg = SimpleNamespace(dataset=SimpleNamespace(valid_subset="valid"))
        self.task = FairseqTask(SimpleNamespace())
        self.dataset, self.workers = SlowNumbers(), workers

    def get_valid_iterator(self, subset: str, disable_iterator_cache: bool = False) -> Any:
        return self.task.get_batch_iterator(
            self.dataset,
            max_sentences=1,
            num_workers=self.workers,
            data_buffer_size=10,
            disable_iterator_cache=disable_iterator_cache,
        )

    def valid_step(self, sample: torch.Tensor) -> None:
        metrics.log_scalar("accuracy", float(sample))


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_reads_all_batches_afterwards(workers: int) -> None:
    """Its loader keeps its workers from one validation to the next."""
    trainer = Trainer(workers)
    assert figures_of_a_batch(trainer) == {"accuracy"}
    assert trainer.get_valid_iterator("valid").dataloader is None
    assert not any(isinstance(thread, iterators.BackgroundConsumer) for thread in threading.enumerate())
    for _ in range(2):
        batches = trainer.get_valid_iterator("valid").next_epoch_itr(shuffle=False, set_dataset_epoch=False)
        assert [int(batch) for batch in batches] == list(range(BATCHES))
