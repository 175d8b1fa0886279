"""The contrastive loss of several processes equals that of one with all pairs, gradients too."""

import pytest

from tests.fairseq_cli import run_gloo

CODE = """
import torch
from torch import distributed as dist
from torchscale_fairseq.core.ops.contrastive import contrastive_losses

torch.manual_seed(0)
rank, pairs = dist.get_rank(), [{sizes}]
inputs = torch.randn(2, sum(pairs), 6, dtype=torch.float64)
weights = [torch.randn(6, 4, dtype=torch.float64).requires_grad_() for _ in range(2)]
scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

def gradients(own, group):
    vectors = [torch.nn.functional.normalize(x[own] @ weight, dim=-1) for x, weight in zip(inputs, weights)]
    loss = contrastive_losses(*vectors, scale.exp(), group).sum()
    return loss.detach(), torch.autograd.grad(loss, [*weights, scale])

start = sum(pairs[:rank])
loss, found = gradients(slice(start, start + pairs[rank]), dist.group.WORLD)
whole, expected = gradients(slice(None), None)
for ours, theirs in zip((loss, *found), (whole, *expected)):
    dist.all_reduce(ours)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
"""


@pytest.mark.parametrize("sizes", [(12,), (7, 5), (4, 1, 0, 7)], ids=["one", "two", "four"])
def test_gradients_are_those_of_one_process(sizes: tuple[int, ...]) -> None:
    """Processes may have different numbers of pairs, and none."""
    done = run_gloo(len(sizes), CODE.replace("{sizes}", ", ".join(map(str, sizes))))
    assert done.stdout.count("passed") == len(sizes), done.output
