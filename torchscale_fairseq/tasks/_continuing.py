"""Continuing texts with a causal model, as ``--task language_modeling`` does: ``sample`` and fairseq-interactive."""

from typing import Any

from fairseq.tasks import FairseqTask
from fairseq.tasks.language_modeling import LanguageModelingTask

from torchscale_fairseq.data.text.pretraining_dataset import PretrainingDataset


class ContinuesTexts(FairseqTask):
    """Goes before FairseqTask in the bases of a task that trains on a ``PretrainingDataset``."""

    build_dataset_for_inference = LanguageModelingTask.build_dataset_for_inference
    inference_step = LanguageModelingTask.inference_step

    @property
    def args(self) -> Any:
        """The options, by the name that fairseq's functions have for them."""
        return self.cfg

    def get_batch_iterator(self, dataset: Any, *arguments: Any, **options: Any) -> Any:
        """The batches of a split or of texts to continue, for one process; arguments as in fairseq.

        Raises:
            InputError: the model or --max-tokens has no room for a sample.
        """
        of_texts = super().get_batch_iterator
        batches = self.batches_of_split if isinstance(dataset, PretrainingDataset) else of_texts
        return batches(dataset, *arguments, **options)

    def batches_of_split(self, dataset: PretrainingDataset, *arguments: Any, **options: Any) -> Any:
        """The batches of a split."""
        raise NotImplementedError
