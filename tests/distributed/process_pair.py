"""Code that turns one process with fairseq imported into two of one gloo group."""

TWO_PROCESSES = """
import os, tempfile, traceback
import torch, torch.distributed as dist
from fairseq.distributed import utils as distributed_utils

meeting = tempfile.mktemp()
rank = 0 if os.fork() else 1
dist.init_process_group("gloo", init_method=f"file://{meeting}", world_size=2, rank=rank)
group = distributed_utils.get_global_group()
try:
    check()
    print(f"rank {rank} passed", flush=True)
except BaseException:
    traceback.print_exc()
    os._exit(1)
failed = rank == 0 and os.wait()[1]
os._exit(1 if failed else 0)
"""
