"""How fairseq iterates over datasets that read image files and draw what varies between epochs."""

from fairseq.data import FairseqDataset


class DrawnImages(FairseqDataset):
    """Reuse the batches of indices in each epoch; set_epoch decides the draws for an index."""

    @property
    def supports_fetch_outside_dataloader(self) -> bool:
        """Images are read by the data loader's workers."""
        return False

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Batches of indices stay."""
        return True
