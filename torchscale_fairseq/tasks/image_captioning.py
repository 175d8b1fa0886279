"""``--task image_captioning``: captions of images, written word by word with fairseq's beam search."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.tasks import FairseqTask, register_task

from torchscale_fairseq.data.images.caption_scores import score_captions
from torchscale_fairseq.data.images.index import Format, Line
from torchscale_fairseq.data.images.joint_dataset import ImagesWithText, MaskedCaptions
from torchscale_fairseq.data.problems import Problems
from torchscale_fairseq.data.text.masking import Masking
from torchscale_fairseq.models._caption_steps import CaptionSteps

from ._joint import JointConfig, JointTask, Record


@dataclass
class ImageCaptioningConfig(JointConfig):
    """Options of the task."""

    mask_prob: float = field(default=0.7, metadata={"help": "fraction of a caption's tokens to predict"})


@register_task("image_captioning", dataclass=ImageCaptioningConfig)
class ImageCaptioningTask(JointTask):
    """Trains on masked captions; a masked word is predicted from the image and the words before it.

    Raises:
        InputError: an option is out of its range.
    """

    cfg: ImageCaptioningConfig
    format = Format(
        text=("text_segment", "caption"),
        example='{"image": "images/1.png", "caption": "a red circle", "image_id": 1}',
        text_is_needed=False,
    )

    def __init__(self, cfg: ImageCaptioningConfig):
        super().__init__(cfg)
        self.masking = Masking.over(
            self.dictionary, mask_prob=cfg.mask_prob, span_length=1.0, leave_unmasked_prob=0.1, random_token_prob=0.1
        )

    def dataset_of(self, lines: list[Line], problems: Problems, *, training: bool = False) -> ImagesWithText:
        """Lines of an index as masked captions; those without captions, as of a test split, as images alone."""
        without = [line.where for line in lines if not line.text]
        if training and without:
            message = f"{without[0]} has no caption, which training needs; it should be such as {self.format.example}"
            problems.found("images without captions", message, len(without))
            lines = [line for line in lines if line.text]
        lines, tokens = self._tokens(lines, problems)
        if all(line.text for line in lines):
            return MaskedCaptions(lines, tokens, self.masking, **self.dataset_options(training))
        return ImagesWithText(lines, tokens, None, **self.dataset_options(training))

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> FairseqCriterion:
        """Build fairseq's criterion for masked words."""
        criterion: FairseqCriterion = FairseqTask.build_criterion(self, cfg, from_checkpoint)
        return criterion

    def build_generator(self, models: Sequence[Any], args: Any, *rest: Any, **more: Any) -> Any:
        """Build fairseq's generator for models that read images."""
        steps = [CaptionSteps(model, self.dictionary) for model in models]
        return super().build_generator(steps, args, *rest, **more)

    def inference_step(
        self, generator: Any, models: Sequence[Any], sample: Any, prefix_tokens: Any = None, constraints: Any = None
    ) -> Any:
        """Write captions of a batch's images."""
        images = sample["net_input"]["images"]
        nothing = torch.zeros(len(images), 1, dtype=torch.long, device=images.device)
        given = {"source": images, "src_tokens": nothing, "src_lengths": nothing[:, 0]}
        return generator.generate(
            models,
            {"id": sample["id"], "net_input": given},
            prefix_tokens=prefix_tokens,
            constraints=constraints,
            bos_token=self.dictionary.bos(),
        )

    def predict(self, models: list[Any], sample: dict[str, Any], lines: Sequence[Line]) -> list[Record]:
        """The best caption of each image, by beam search with 3 beams as in the released code, in COCO's form."""
        generator = self.build_generator(models, SimpleNamespace(beam=3, max_len_b=self.cfg.max_source_positions - 2))
        found = self.inference_step(generator, models, sample)
        return [
            {"image_id": line.content.get("image_id", str(line.images[0])), "caption": self.text_of(hypotheses[0])}
            for line, hypotheses in zip(lines, found, strict=True)
        ]

    def figures(self, records: Sequence[Record], lines: Sequence[Line]) -> dict[str, float]:
        """CIDEr and BLEU by pycocoevalcap, and the share of captions that are a reference word by word."""
        if not all(isinstance(line.content.get("caption"), str) for line in lines):
            return {}
        return score_captions(
            [(r["image_id"], r["caption"]) for r in records],
            [(r["image_id"], line.content["caption"]) for r, line in zip(records, lines, strict=True)],
        )

    def text_of(self, hypothesis: dict[str, Any]) -> str:
        """A caption as text."""
        return self.encoder.decode(hypothesis["tokens"].tolist())
