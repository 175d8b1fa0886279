"""DINO's loss and schedules: a student predicts its teacher's outputs for other views of the same image.

"Emerging Properties in Self-Supervised Vision Transformers", arXiv:2104.14294, sec. 3.1.
"""

import math

import torch
from torch import Tensor


def self_distillation_losses(
    student: Tensor, teacher: Tensor, center: Tensor, *, student_temp: float, teacher_temp: float
) -> tuple[Tensor, Tensor]:
    """The mean, over all pairs of different views, of the cross-entropy of the student's distribution over prototypes
    under the teacher's (eq. 3).

    Args:
        student: (views, images, prototypes), logits; the teacher's views come first.
        teacher: (teacher views, images, prototypes), logits.
        center: (prototypes,), subtracted from the teacher's logits.
        student_temp, teacher_temp: temperatures, by which logits are divided.

    Returns:
        Losses (images,), and the mean entropies of the teacher's distributions, (images,), both in nats. Gradients
        reach the student alone.
    """
    with torch.no_grad():
        targets = ((teacher - center) / teacher_temp).log_softmax(-1)
        probabilities = targets.exp()
        entropies = -(probabilities * targets).sum(-1).mean(0)
    predictions = (student / student_temp).log_softmax(-1)
    pairs = -torch.einsum("tip,sip->its", probabilities, predictions)
    others = 1.0 - torch.eye(teacher.size(0), student.size(0), dtype=pairs.dtype, device=pairs.device)
    return (pairs * others).sum((1, 2)) / others.sum(), entropies


def cosine_momentum(update: int, updates: int, first: float) -> float:
    """The momentum of the teacher, which rises from ``first`` to 1 along half a cosine and stays there.

    Args:
        update: number of updates so far.
        updates: number of updates after which it is 1; at least 1.
        first: momentum of the first update.
    """
    done = min(update / updates, 1.0)
    return 1.0 - (1.0 - first) * (1.0 + math.cos(math.pi * done)) / 2.0


def warmed_up(update: int, updates: int, first: float, last: float) -> float:
    """A value that goes linearly from ``first`` to ``last`` in this number of updates and stays there.

    Args:
        update: number of updates so far.
        updates: length of the warm-up; 0 for none.
        first, last: values before and after the warm-up.
    """
    return first + (last - first) * (min(update / updates, 1.0) if updates else 1.0)
