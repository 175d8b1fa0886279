"""DINO: a student and its teacher, each a vision transformer with a projection head.

"Emerging Properties in Self-Supervised Vision Transformers", arXiv:2104.14294.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..layers.momentum_teacher import Center, MomentumTeacher
from ..layers.projection_head import ProjectionHead


class ProjectedImages(nn.Module):
    """A vision transformer, the norm of the vector that stands for an image, and a projection head.

    Args:
        body: a LongViT or a ViT.
        norm: of the pooled features.
        head: from the normalised features to logits.
    """

    def __init__(self, body: Any, norm: nn.Module, head: ProjectionHead):
        super().__init__()
        self.model = body
        self.fc_norm = norm
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width), seen as -1 to 1, to logits (batch, prototypes)."""
        logits: Tensor = self.head(self.embed(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """The vectors, (batch, width), that stand for images."""
        vectors: Tensor = self.fc_norm(self.model.pool(self.model(images)))
        return vectors


class SelfDistillation(nn.Module):
    """A student, and a teacher that begins as its copy.

    Args:
        student, teacher: of one architecture; the teacher's weights are overwritten.
    """

    def __init__(self, student: ProjectedImages, teacher: ProjectedImages):
        super().__init__()
        self.student = student
        self.teacher = MomentumTeacher(teacher)
        self.center = Center(student.head.prototypes.size(0))
        self.teacher.follow(student, 0.0)

    def forward(self, global_crops: Tensor, local_crops: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the student for all crops, and of the teacher for global ones.

        Args:
            global_crops: (views, images, channels, height, width), pixels from 0 to 255.
            local_crops: likewise, of another size; None for none.

        Returns:
            (all views, images, prototypes), and (global views, images, prototypes); float32 or more.
        """
        sizes = [self._seen(crops) for crops in (global_crops, local_crops) if crops is not None]
        student = torch.cat([_by_view(self.student, crops) for crops in sizes])
        return student, _by_view(self.teacher, sizes[0])

    def follow_student(self, momentum: float, center_momentum: float, group: ProcessGroup | None = None) -> None:
        """Update the teacher and the center after an update of the student.

        Args:
            momentum: of the teacher.
            center_momentum: of the center.
            group: processes with other images, all of which call this together; None for this one alone.
        """
        self.teacher.follow(self.student, momentum)
        self.center.update(center_momentum, group)

    def _seen(self, crops: Tensor) -> Tensor:
        return crops.to(next(self.student.parameters()).dtype) / 127.5 - 1.0


def _by_view(network: nn.Module, crops: Tensor) -> Tensor:
    """Run all crops as one batch: (views, images, ...) to (views, images, prototypes)."""
    logits: Tensor = network(crops.flatten(0, 1))
    return logits.unflatten(0, crops.shape[:2])
