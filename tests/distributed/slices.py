"""What each gloo process runs in the tests of sequences that processes share out."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import assert_close, triple
from torchscale_fairseq import dilated_attention
from torchscale_fairseq.core.ops.dilated_pattern import naive_dilated_attention
from torchscale_fairseq.core.parallel import dilated
from torchscale_fairseq.core.parallel.dilated import dilated_attention_of_slice
from torchscale_fairseq.core.parallel.exchange import exchange
from torchscale_fairseq.core.parallel.sequence import SequenceSlice

HEADS, CHANNELS, BATCH = 3, 4, 2


def device() -> torch.device:
    """Of the tensors that the group exchanges."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def inputs(length: int, seed: int) -> list[Tensor]:
    """Query, key, value and a direction of gradients, the same in all processes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, length, HEADS, CHANNELS)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device()) for _ in range(4)]


def attend(
    length: int,
    segments: list[int],
    ratios: list[int],
    *,
    causal: bool,
    lengths: Tensor | None,
    seed: int,
    dtype: torch.dtype = torch.float64,
) -> list[list[Tensor]]:
    """Output and gradients: of the slices of all processes put together, and in the first process also, in float64, of
    one process, and by the definition; all are zero at padding."""
    sequence = SequenceSlice(dist.group.WORLD, length, lengths).to(device())
    *tensors, direction = (x.to(dtype) for x in inputs(sequence.total, seed))
    padding = None
    if sequence.lengths is not None:
        padding = torch.arange(sequence.total, device=device()) >= sequence.lengths[:, None]
    outside = torch.tensor(False, device=device()) if padding is None else padding[:, :, None, None]
    direction = direction.masked_fill(outside, 0.0)
    own = slice(sequence.start, sequence.start + length)
    slices = triple(x[:, own].clone().requires_grad_() for x in tensors)
    output = dilated_attention_of_slice(*slices, segments, ratios, sequence, causal=causal)
    results = [[together(x) for x in (output, *torch.autograd.grad(output, slices, direction[:, own]))]]
    for function in (dilated_attention, naive_dilated_attention) if dist.get_rank() == 0 else ():
        wholes = triple(x.double().requires_grad_() for x in tensors)
        output = function(*wholes, segments, ratios, causal=causal, key_padding_mask=padding)
        results.append([output.masked_fill(outside, 0.0), *torch.autograd.grad(output, wholes, direction.double())])
    return results


def together(x: Tensor) -> Tensor:
    """The slices of all processes."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts, 1)


def check_cases(cases: int) -> None:
    """Slices equal one process and the definition, for drawn lengths, branches and padding."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    for seed in range(cases):
        length, branches, causal = draw(1, 9), draw(1, 4), bool(draw(0, 2))
        segments, ratios = [draw(1, 30) for _ in range(branches)], [draw(1, 6) for _ in range(branches)]
        total = length * dist.get_world_size()
        lengths = torch.tensor([draw(1, total + 1) for _ in range(BATCH)]) if draw(0, 2) else None
        what = f"length={length} segments={segments} ratios={ratios} causal={causal} lengths={lengths}"
        found, *others = attend(length, segments, ratios, causal=causal, lengths=lengths, seed=seed)
        for other, source in zip(others, ("one process", "the definition"), strict=False):
            for name, x, y in zip(("output", "query", "key", "value"), found, other, strict=True):
                assert_close(x, y, "float64", f"{name} against {source}, {what}")


def check_low_precision() -> None:
    """The kernels for half precision come as near to float64 as they do in one process."""
    for dtype, bound in ((torch.float16, 5e-3), (torch.bfloat16, 2e-2)):
        for causal in (False, True):
            found, *others = attend(64, [48, 64, 256], [1, 2, 4], causal=causal, lengths=None, seed=0, dtype=dtype)
            names = ("output", "query", "key", "value") if others else ()
            for name, x, y in zip(names, found, others[0] if others else (), strict=False):
                assert x.dtype == dtype
                error = ((x.double() - y).norm() / y.norm()).item()
                assert error < bound, f"{name}: relative RMS error {error}, {dtype}, causal={causal}"


def check_traffic() -> None:
    """Only keys and values that are kept, of segments that are shared, travel, and only to later tokens if order
    matters; both ways the same."""
    sent: list[list[int]] = []

    def counting(rows: Tensor, outgoing: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        sent.append(outgoing)
        return exchange(rows, outgoing, received, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dilated, "exchange", counting)
        attend(8, [4, 8], [1, 2], causal=False, lengths=None, seed=0)
        assert sent == []
        per_key = 2 * BATCH * HEADS * CHANNELS
        rank, ranks = dist.get_rank(), range(dist.get_world_size())
        attend(8, [4, 64], [1, 4], causal=False, lengths=None, seed=0)
        forth, back = sent
        assert forth == back == [0 if other == rank else 2 * per_key for other in ranks]
        sent.clear()
        attend(8, [4, 64], [1, 4], causal=True, lengths=None, seed=0)
        forth, back = sent
        assert forth == [2 * per_key if other > rank else 0 for other in ranks]
        assert back == [2 * per_key if other < rank else 0 for other in ranks]


def check_batches() -> None:
    """Three processes' slices of a batch are the batch, filled up with padding, and count its tokens once."""
    from torchscale_fairseq.hooks.sequence_parallel import SequenceSharing, SlicesOfTokens

    group = dist.group.WORLD
    sharing = SequenceSharing(group, SlicesOfTokens(group, padding=1), sentence_avg=False)
    for rows, filled in (([[5, 6, 7, 8, 9, 10, 11], [5, 6, 1, 1, 1, 1, 1]], 9), ([[5, 6], [7, 8]], 3)):
        tokens = torch.tensor(rows)
        given = {"src_tokens": tokens, "src_lengths": tokens.ne(1).sum(1)}
        sample = {"net_input": given, "target": tokens, "ntokens": 9}
        own = sharing.slice(sample)
        assert given.keys() == {"src_tokens", "src_lengths"}
        assert sharing.slice(own) is own
        expected = F.pad(tokens, (0, filled - tokens.size(1)), value=1)
        assert torch.equal(together(own["net_input"]["src_tokens"]), expected)
        assert torch.equal(together(own["target"]), expected)
        assert torch.equal(own["net_input"]["src_lengths"], given["src_lengths"])
        counted = torch.tensor(own["ntokens"])
        dist.all_reduce(counted)
        assert counted == tokens.ne(1).sum()
        part = own["net_input"]["sequence_slice"]
        assert torch.equal(together(part.real()), expected.ne(1))
        rows_of_positions = together(part.position_rows(tokens.device))
        assert torch.equal(rows_of_positions, (torch.arange(filled) + 2).where(expected.ne(1), 1))
    padded_left = torch.tensor([[1, 5, 6]])
    with pytest.raises(ValueError, match="--seq-parallel needs padding at the end of a row"):
        sharing.slice({"net_input": {"src_tokens": padded_left}})


if __name__ == "__main__":
    import os

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    check_cases(30)
    check_low_precision()
    check_traffic()
    print("passed", flush=True)
    dist.destroy_process_group()
