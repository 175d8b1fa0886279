"""The model of ``--task self_distillation``: a student and a teacher, whose body is that of an architecture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.models import BaseFairseqModel
from torch import Tensor

from torchscale_fairseq.core.architectures.self_distillation import ProjectedImages, SelfDistillation
from torchscale_fairseq.core.layers.projection_head import ProjectionHead
from torchscale_fairseq.core.ops.patch_embedding import Bands


class SelfDistillationModel(BaseFairseqModel, SelfDistillation):
    """A student and its teacher.

    Args:
        family: the class that scores classes of images with this body.
        config: of the core.
        options: of the task.
    """

    def __init__(self, family: Any, config: Any, options: Any):
        self.family, self.config, self.options = family, config, options
        self.num_updates = 0
        # the teacher's weights are replaced for each call in low precision, which would compile it again
        eager = dataclasses.replace(config, compile=False)
        SelfDistillation.__init__(self, self._network(config), self._network(eager))

    def _network(self, config: Any) -> ProjectedImages:
        options, classifier = self.options, self.family(config, 1)
        sizes = (options.head_dim, options.bottleneck_dim, options.prototypes)
        head = ProjectionHead(config.encoder_embed_dim, *sizes)
        return ProjectedImages(classifier.model, classifier.fc_norm, head)

    def load_weights(self, path: str | Path, **options: Any) -> None:
        """Begin from a file of released weights, without its head; arguments and errors are those of
        ``Classifier.load_weights``."""
        classifier = self.family(self.config, 1)
        classifier.load_weights(path, **options)
        self.student.model.load_state_dict(classifier.model.state_dict())
        self.student.fc_norm.load_state_dict(classifier.fc_norm.state_dict())
        self.teacher.follow(self.student, 0.0)

    def set_num_updates(self, num_updates: int) -> None:
        """Called by fairseq before each batch."""
        super().set_num_updates(num_updates)
        self.num_updates = num_updates
        self.student.head.frozen = num_updates < self.options.freeze_last_layer_updates

    def extract_features(self, patches: Tensor | Sequence[Bands]) -> Tensor:
        """The teacher's features (batch, tokens, width); arguments as for ``forward_patches`` of the body."""
        teacher: Any = self.teacher.network
        features: Tensor = teacher.model.forward_patches(patches)
        return features

    def embed_images(self, images: Tensor) -> Tensor:
        """The teacher's vectors (batch, width) for images (batch, channels, height, width), seen as -1 to 1."""
        teacher: Any = self.teacher.network
        vectors: Tensor = teacher.embed(images)
        return vectors

    def max_positions(self) -> None:
        """The task knows how large images are."""
