"""How fairseq iterates over datasets that read image files and draw what varies between epochs."""

from fairseq.data import FairseqDataset


class DrawnImages(FairseqDataset):
    """The same batches of indices in each epoch; what is drawn for an index follows set_epoch."""

    @property
    def supports_fetch_outside_dataloader(self) -> bool:
        """Images are read by the data loader's workers."""
        return False

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Batches of indices stay."""
        return True
