"""Work that waits for a part of a replay of a CUDA graph."""

import pytest
import torch

pytest.importorskip("fairseq")

from torchscale_fairseq.hooks.training.gradient_sums import EXTERNAL, mark_recording

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not EXTERNAL, reason="this torch records no events for streams outside of a recording"),
]
SHORT, LONG = 10**7, 2 * 10**8
"""Cycles in which a device sleeps: a few milliseconds, and long enough for another stream to begin."""


def test_a_stream_goes_on_when_a_replay_has_passed_a_mark() -> None:
    """In each replay: not before the mark, and before the end."""
    first, last = (torch.zeros(1, device="cuda") for _ in range(2))
    seen = torch.empty(2, device="cuda")
    torch.cat((first, last), out=seen)  # CUDA waits for all that runs when it loads a kernel for the first time
    first += 0
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        torch.cuda._sleep(SHORT)
        first += 1
        event = mark_recording(first.device)
        torch.cuda._sleep(LONG)
        last += 1
    for replays in (1, 2, 3):
        graph.replay()
        with torch.cuda.stream(side):
            event.wait()
            torch.cat((first, last), out=seen)
        torch.cuda.synchronize()
        assert seen.tolist() == [replays, replays - 1]
