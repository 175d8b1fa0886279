"""Self-distillation (DINO) against its definition in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.core.distilled import drawn, network
from tests.helpers import assert_close
from torchscale_fairseq.core.architectures.self_distillation import SelfDistillation
from torchscale_fairseq.core.layers.momentum_teacher import Center, MomentumTeacher
from torchscale_fairseq.core.layers.projection_head import ProjectionHead
from torchscale_fairseq.core.ops.self_distillation import cosine_momentum, self_distillation_losses, warmed_up


def loss_by_definition(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    """The loss of one image, from (views, prototypes), term by term; temperatures 0.1 and 0.04."""
    terms = []
    for i, given in enumerate(teacher):
        target = torch.exp((given - center) / 0.04)
        target = target / target.sum()
        for j, predicted in enumerate(student):
            if i != j:
                probabilities = torch.exp(predicted / 0.1)
                terms.append(-(target * torch.log(probabilities / probabilities.sum())).sum())
    return sum(terms[1:], terms[0]) / len(terms)


def test_loss_and_gradient_are_those_of_the_definition() -> None:
    student, teacher, center = drawn(5, 3, 7).requires_grad_(), drawn(2, 3, 7, seed=1) / 10, drawn(7, seed=2) / 10
    teacher.requires_grad_()
    losses, entropies = self_distillation_losses(student, teacher, center, student_temp=0.1, teacher_temp=0.04)
    expected = torch.stack([loss_by_definition(student[:, i], teacher[:, i], center) for i in range(3)])
    assert_close(losses, expected, "float64")
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found, teachers = torch.autograd.grad((losses * weights).sum(), (student, teacher), allow_unused=True)
    assert teachers is None
    assert_close(found, torch.autograd.grad((expected * weights).sum(), student)[0], "float64")
    targets = ((teacher - center) / 0.04).softmax(-1)
    assert_close(entropies, torch.special.entr(targets).sum(-1).mean(0), "float64")


def test_schedules() -> None:
    assert [cosine_momentum(n, 4, 0.9) for n in (0, 2, 4, 9)] == pytest.approx([0.9, 0.95, 1.0, 1.0])
    assert cosine_momentum(1, 4, 0.9) == pytest.approx(1 - 0.1 * (1 + math.cos(math.pi / 4)) / 2)
    assert [warmed_up(n, 4, 0.04, 0.08) for n in (0, 1, 4, 9)] == pytest.approx([0.04, 0.05, 0.08, 0.08])
    assert warmed_up(0, 0, 0.04, 0.07) == 0.07


def test_the_head_gives_cosines_with_prototypes() -> None:
    torch.manual_seed(0)
    head: Any = ProjectionHead(8, 12, 6, 10).double()
    x = drawn(3, 8)
    hidden = head.mlp(x)
    expected = torch.stack([torch.cosine_similarity(hidden, prototype[None]) for prototype in head.prototypes], 1)
    assert_close(head(x), expected, "float64")
    weights = drawn(3, 10, seed=1)
    (head(x) * weights).sum().backward()
    free = head.mlp[0].weight.grad.clone()
    assert head.prototypes.grad.any()
    head.zero_grad()
    head.frozen = True
    (head(x) * weights).sum().backward()
    assert not head.prototypes.grad.any()
    assert_close(head.mlp[0].weight.grad, free, "float64")


@pytest.mark.parametrize("kind", ["vit", "longvit"])
def test_teacher_and_center_follow_by_the_definition(kind: str) -> None:
    """Three updates, whose batches come in two parts; local crops have another size."""
    torch.manual_seed(0)
    model = SelfDistillation(network(kind), network(kind)).double().train()
    weights = [p.detach().clone() for p in model.student.parameters()]
    center = torch.zeros(10, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.student.parameters(), lr=0.5)
    for update in range(3):
        outputs = []
        for part in range(2):
            crops = (255 * drawn(2, 3, 3, 16, 16, seed=2 * update + part).sigmoid()).round()
            student, teacher = model(crops, crops[..., :8, :8])
            assert student.shape == (4, 3, 10) and not teacher.requires_grad
            by_hand = [model.teacher.network(view / 127.5 - 1) for view in crops]
            assert_close(teacher, torch.stack(by_hand), "float64")
            model.center.observe(teacher)
            outputs.append(teacher)
            self_distillation_losses(student, teacher, center, student_temp=0.1, teacher_temp=0.04)[0].sum().backward()
        optimizer.step()
        model.follow_student(0.9 + update / 100, 0.8)
        momentum = 0.9 + update / 100
        followed = zip(weights, model.student.parameters(), strict=True)
        weights = [momentum * own + (1 - momentum) * new.detach() for own, new in followed]
        center = 0.8 * center + 0.2 * torch.cat(outputs).mean((0, 1))
    assert_close(model.center.value, center, "float64")
    for own, expected in zip(model.teacher.parameters(), weights, strict=True):
        assert own.grad is None and not own.requires_grad
        assert_close(own, expected, "float64")


def test_averages_stay_in_float32() -> None:
    """A change that bfloat16 rounds away reaches the teacher, and a state dict restores it."""
    torch.manual_seed(0)
    student: Any = nn.Linear(4, 2)
    teacher: Any = MomentumTeacher(nn.Linear(4, 2))
    center: Any = Center(2)
    teacher.follow(student, 0.0)
    student, teacher, center = (module.to(torch.bfloat16) for module in (student, teacher, center))
    before = teacher.network.weight.clone()
    teacher.follow(student, 0.999)
    assert teacher.network.weight.dtype == center.value.dtype == torch.float32
    assert (teacher.network.weight != before).any()
    assert teacher(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    restored: Any = MomentumTeacher(nn.Linear(4, 2)).to(torch.bfloat16)
    restored.load_state_dict(teacher.state_dict())
    assert torch.equal(restored.network.weight, teacher.network.weight)
    assert not teacher.train().training
