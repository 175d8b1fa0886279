"""Which models can read packed rows, whose documents do not see each other."""

from torch import nn

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.dilated_attention import DilatedAttention


def check_packing(arch: str, model: nn.Module) -> None:
    """Refuse models that cannot separate documents.

    Args:
        arch: the architecture's name.
        model: as built.

    Raises:
        InputError: the model has dilated attention, or is not of this package.
    """
    if any(isinstance(module, DilatedAttention) for module in model.modules()):
        raise InputError(
            f"--pack-documents needs dense attention or retention, but --arch {arch} has dilated attention, whose "
            "segments are counted from the first token of a row; drop --pack-documents (in --task pretraining and "
            "language_modeling, --sample-break-mode complete_doc gives each document rows of its own)."
        )
    if not getattr(model, "separates_documents", False):
        raise InputError(
            f"--pack-documents needs a model that is told where documents begin, and --arch {arch} is not; drop "
            "--pack-documents, or give --arch gpt_deepnorm, retnet_base or bert_magneto."
        )
