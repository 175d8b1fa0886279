"""Compiled layers within torch's DistributedDataParallel."""

from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from tests.distributed.short_training import words
from tests.fairseq_cli import run_processes, tiny_language_data

COUNTING = """
import torch
from torch._dynamo.backends.distributed import DDPOptimizer
from torchscale_fairseq import plugin
plugin.register()
from torchscale_fairseq.core.architectures import layer_sequence
layer_sequence.ONE_REGION = {most}
cut = DDPOptimizer.compile_fn
def cut_and_tell(self, graph, inputs):
    print("looked for places to cut", flush=True)
    return cut(self, graph, inputs)
DDPOptimizer.compile_fn = cut_and_tell
compile_module = torch.nn.Module.compile
torch.nn.Module.compile = lambda module, **options: compile_module(module, backend="eager", **options)
"""


@pytest.mark.parametrize("most", [0, 12], ids=["one by one", "one region"])
def test_only_a_region_of_layers_is_cut_where_buckets_end(most: int, tmp_path: Path) -> None:
    data = tiny_language_data(tmp_path)
    given = [*words(data, tmp_path / "run"), "--compile", "--max-update", "2", "--no-save", "--disable-validation"]
    done = run_processes(2, "train", given, before=COUNTING.format(most=most)).check()
    assert ("looked for places to cut" in done.output) == (most > 0)
