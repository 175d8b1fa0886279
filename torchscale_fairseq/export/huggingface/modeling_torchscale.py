"""Models of torchscale_fairseq for transformers. Needs the package: pip install torchscale-fairseq."""

from torchscale_fairseq.export.huggingface.causal import CoreForCausalLM
from torchscale_fairseq.export.huggingface.configuration import CoreConfig
from torchscale_fairseq.export.huggingface.images import CoreForImageAndText, CoreForImageClassification
from torchscale_fairseq.export.huggingface.masked import CoreForMaskedLM
from torchscale_fairseq.export.huggingface.tokenizer import CoreTokenizer
from torchscale_fairseq.export.huggingface.translation import CoreForSeq2SeqLM

# Each is a subclass made here, so that transformers copies this file with a model that it saves.


class TorchScaleConfig(CoreConfig):
    """config.json."""


class TorchScaleForCausalLM(CoreForCausalLM):
    """A language model."""

    config_class = TorchScaleConfig


class TorchScaleForMaskedLM(CoreForMaskedLM):
    """A masked language model."""

    config_class = TorchScaleConfig


class TorchScaleForSeq2SeqLM(CoreForSeq2SeqLM):
    """A translation model."""

    config_class = TorchScaleConfig


class TorchScaleForImageClassification(CoreForImageClassification):
    """A LongViT."""

    config_class = TorchScaleConfig


class TorchScaleForImageAndText(CoreForImageAndText):
    """A BEiT-3."""

    config_class = TorchScaleConfig


class TorchScaleTokenizer(CoreTokenizer):
    """A tokenizer whose pieces a dictionary of fairseq numbers."""
