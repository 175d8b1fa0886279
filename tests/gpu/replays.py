"""Code for processes of fairseq-train: each replay of a CUDA graph prints a line."""

TELLING = """
import torch
replay = torch.cuda.CUDAGraph.replay
def replay_and_tell(self):
    print("replayed", flush=True)
    replay(self)
torch.cuda.CUDAGraph.replay = replay_and_tell
"""
