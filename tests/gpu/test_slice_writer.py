"""Copies of tensors that are written while the tensors change: on a GPU they lie in memory that every save uses."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("fairseq")

CODE = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from torchscale_fairseq.checkpoints.distributed import read_whole
from torchscale_fairseq.hooks.sharding.asynchronous import SliceWriter

device, folder = sys.argv[1], Path(sys.argv[2])
backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh(device, (1,))
plain = torch.arange(6.0, device=device)
cut = distribute_tensor(torch.arange(12.0, device=device).view(4, 3), mesh, [Shard(0)])
writer = SliceWriter()
writer.reserve({"plain": plain, "cut": cut})
reserved = writer._copies
for save in range(3):
    tensors = {"plain": plain, "cut": cut}
    if save == 2:
        tensors["new"] = plain.double()
    expected = {name: tensor.full_tensor() if name == "cut" else tensor for name, tensor in tensors.items()}
    expected = {name: tensor.detach().cpu().clone() for name, tensor in expected.items()}
    written = writer.begin(tensors, folder / str(save))
    plain += 100
    cut.to_local().mul_(-3)
    written.result()
    assert (writer._copies is reserved) == (save < 2), "every save uses the same memory"
    found = read_whole(folder / str(save))
    assert found.keys() == expected.keys(), found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected), (save, found, expected)
    print("saved", save)
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_each_save_holds_what_was_there_when_it_began(device: str, tmp_path: object) -> None:
    """The third has a tensor more."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    done = subprocess.run([sys.executable, "-c", CODE, device, str(tmp_path)], capture_output=True, text=True)
    assert not done.returncode and done.stdout.count("saved") == 3, done.stderr[-2000:]
