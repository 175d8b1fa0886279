"""Self-distillation in several processes equals that of one with all images."""

import pytest

from tests.fairseq_cli import run_gloo

PROCESSES = """
import torch
from torch import distributed as dist
from tests.core.distilled import drawn, network
from torchscale_fairseq.core.architectures.self_distillation import SelfDistillation
from torchscale_fairseq.core.ops.self_distillation import self_distillation_losses

def trained(own, group):
    torch.manual_seed(0)
    model = SelfDistillation(network("vit"), network("vit")).double()
    for update in range(2):
        crops = (255 * drawn(2, 7, 3, 16, 16, seed=update).sigmoid()).round()[:, own]
        student, teacher = model(crops, crops[..., :8, :8])
        losses = self_distillation_losses(student, teacher, model.center.value, student_temp=0.1, teacher_temp=0.04)[0]
        model.center.observe(teacher)
        model.zero_grad()
        losses.sum().backward()
        gradients = [p.grad for p in model.student.parameters()]
        for gradient in gradients if group else ():
            dist.all_reduce(gradient)
        with torch.no_grad():
            for parameter, gradient in zip(model.student.parameters(), gradients):
                parameter -= 0.01 * gradient
        model.follow_student(0.9, 0.8, group)
    return [*gradients, *model.state_dict().values()]

sizes = [{sizes}]
start = sum(sizes[:dist.get_rank()])
found = trained(slice(start, start + sizes[dist.get_rank()]), dist.group.WORLD)
for ours, theirs in zip(found, trained(slice(None), None), strict=True):
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
"""


@pytest.mark.parametrize("sizes", [(3, 4), pytest.param((2, 4, 1), marks=pytest.mark.slow)], ids=["two", "three"])
def test_processes_train_what_one_does(sizes: tuple[int, ...]) -> None:
    """Gradients, weights, teacher and center; processes have different numbers of images."""
    done = run_gloo(len(sizes), PROCESSES.replace("{sizes}", ", ".join(map(str, sizes))))
    assert done.stdout.count("passed") == len(sizes), done.output
