"""Starts of flash-linear-attention's kernels for retention, with the tiles that are fastest on a Hopper GPU.

fla's own functions look for other implementations at each start, and Triton for tuned tiles; the host, which has to
start a dozen kernels in each layer, falls behind.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fla_tuning import SIDES_OF_CHUNKS, TILE_OF_CHUNKS, TILES_OF_STATES, candidates_of, inner
from .quick_launch import Repeats, launch
from .retention_packing import CHUNK

ARGUMENTS = {
    "chunk_fwd_kernel_h": (
        "k v h g g_gamma gk gv h0 ht cu_seqlens split_offsets T H K V BT BS BK BV USE_G USE_G_GAMMA USE_GK USE_GV "
        "USE_INITIAL_STATE STORE_FINAL_STATE IS_VARLEN STATE_V_FIRST"
    ),
    "chunk_bwd_kernel_dh": (
        "q g g_gamma gk gv do dh dht dh0 cu_seqlens split_offsets scale T HQ H K V BT BS BK BV NG USE_G USE_G_GAMMA "
        "USE_GK USE_GV STORE_INITIAL_STATE_GRADIENT USE_FINAL_STATE_GRADIENT IS_VARLEN STATE_V_FIRST"
    ),
    "chunk_fwd_kernel_o": (
        "q k v h g g_gamma o cu_seqlens chunk_indices scale T H HV K V BT BK BV USE_G USE_G_GAMMA STATE_V_FIRST "
        "IS_VARLEN"
    ),
    "chunk_bwd_kernel_dqkwg": (
        "q k v g g_gamma h do dh dq dk dw dv dg cu_seqlens chunk_indices scale B T H HV K V BT BK BV USE_G USE_G_GAMMA "
        "USE_DW STATE_V_FIRST IS_VARLEN"
    ),
    "chunk_bwd_kernel_dv": (
        "q k g g_gamma do dv dh cu_seqlens chunk_indices scale T H HV K V BT BK BV USE_G USE_G_GAMMA IS_VARLEN "
        "STATE_V_FIRST"
    ),
}
"""Kernels and their arguments in fla-core 0.6; they are internal to fla."""
_TUNED, _TUNER = "chunk_fwd_kernel_o", "tuner"
"""The kernel whose tile Triton chooses, among few, and its name with the tuner around it."""
_CHOSEN: dict[tuple[Any, ...], dict[str, Any]] = {}
"""Tiles that were chosen, by sizes; a tuner costs the host more than the launch itself."""
_REPEATS = Repeats()


@functools.cache
def kernels() -> dict[str, Any] | None:
    """The installed kernels by name, without what chooses their arguments; None if they take others than these."""
    try:
        from fla.ops.common import chunk_h, chunk_o
        from fla.ops.simple_gla.chunk import RCP_LN2  # noqa: F401  # decays are powers of two
    except ImportError:
        return None
    found = {name: getattr(chunk_h, name, None) or getattr(chunk_o, name, None) for name in ARGUMENTS}
    if any(list(getattr(found[name], "arg_names", ())) != names.split() for name, names in ARGUMENTS.items()):
        return None
    return {name: _bare(kernel) for name, kernel in found.items()} | {_TUNER: _bare(found[_TUNED], tuned=True)}


def _bare(kernel: Any, *, tuned: bool = False) -> Any:
    """A kernel without heuristics, and without its tuner unless it is to be tuned."""
    while hasattr(inner(kernel), "arg_names") and not (tuned and candidates_of(kernel)):
        kernel = kernel.fn
    return kernel


class Sequences(NamedTuple):
    """Where packed sequences lie (``retention_packing``); each row is one if all are None."""

    offsets: Tensor | None
    first: Tensor | None
    places: Tensor | None


class Sizes(NamedTuple):
    """Sizes of a request. Packed sequences are one row."""

    rows: int
    tokens: int
    """Tokens of a row."""
    chunks: int
    """Chunks of a row."""
    sequences: int
    """Rows, or packed sequences."""
    state: tuple[int, int, int]
    """Heads, key_dim and value_dim."""

    @classmethod
    def of(cls, key: Tensor, value: Tensor, where: Sequences) -> "Sizes":
        """From tokens, (rows, tokens, heads, dim)."""
        rows, tokens, heads, key_dim = key.shape
        state = (heads, key_dim, value.size(-1))
        if where.offsets is None or where.places is None:
            return cls(rows, tokens, -(-tokens // CHUNK), rows, state)
        return cls(1, rows * tokens, where.places.size(0), where.offsets.size(0) - 1, state)

    def shape_of_states(self) -> tuple[int, ...]:
        """(rows, chunks, heads, key_dim, value_dim)."""
        return (self.rows, self.chunks, *self.state)


class Launches:
    """Starts of the kernels for one request.

    Args:
        query, key: (rows, tokens, heads, key_dim), contiguous and of one dtype.
        value: (rows, tokens, heads, value_dim), likewise.
        decay: (heads,), float32, logarithms to base 2.
        where: packed sequences, which lie one after the other in the rows.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, decay: Tensor, where: Sequences) -> None:
        self.query, self.key, self.value, self.where = query, key, value, where
        self.sizes = Sizes.of(key, value, where)
        found = kernels()
        assert found is not None
        self._kernels = found
        heads, key_dim, value_dim = self.sizes.state
        self._tensors = {"g_gamma": decay, "cu_seqlens": where.offsets}
        self._constants: dict[str, Any] = {
            "g": None,
            "T": self.sizes.tokens,
            "H": heads,
            "K": key_dim,
            "V": value_dim,
            "BT": CHUNK,
            "USE_G": False,
            "USE_G_GAMMA": True,
            "IS_VARLEN": where.offsets is not None,
            "STATE_V_FIRST": False,
        }

    def states(self, state: Tensor | None, last: Tensor | None) -> Tensor:
        """States before each chunk, (rows, chunks, heads, key_dim, value_dim), in the dtype of the tokens.

        Args:
            state: before the sequences, (sequences, heads, key_dim, value_dim), float32; None for zeros.
            last: takes in the states after the sequences, unless it is None.
        """
        before = self.key.new_empty(self.sizes.shape_of_states())
        tensors = {"k": self.key, "v": self.value, "h": before, "h0": state, "ht": last}
        given = {"USE_INITIAL_STATE": state is not None, "STORE_FINAL_STATE": last is not None}
        self._start_of_states("chunk_fwd_kernel_h", tensors, **given)
        return before

    def gradients_of_states(self, gradient: Tensor, of_last: Tensor | None, of_state: Tensor | None) -> Tensor:
        """Gradients of what ``states`` returns, in its dtype.

        Args:
            gradient: of the output.
            of_last: of the states after the sequences, if they are used.
            of_state: takes in those of the states before them, unless it is None.
        """
        of_before = self.key.new_empty(self.sizes.shape_of_states())
        tensors = {"q": self.query, "do": gradient, "dh": of_before, "dht": of_last, "dh0": of_state}
        given = {"STORE_INITIAL_STATE_GRADIENT": of_state is not None, "USE_FINAL_STATE_GRADIENT": of_last is not None}
        constant = {"scale": 1.0, "HQ": self.sizes.state[0], "NG": 1}
        self._start_of_states("chunk_bwd_kernel_dh", tensors, **given, **constant)
        return of_before

    def output(self, before: Tensor) -> Tensor:
        """From the states before each chunk."""
        output = torch.empty_like(self.value)
        self._start_of_chunks(_TUNED, "V", {"q": self.query, "k": self.key, "v": self.value, "h": before, "o": output})
        return output

    def gradients(self, gradient: Tensor, before: Tensor, of_before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value, from those of the output and of the states before each chunk."""
        of_query, of_key, of_value = (torch.empty_like(x) for x in (self.query, self.key, self.value))
        given = {"q": self.query, "k": self.key, "do": gradient, "dh": of_before}
        found = {"v": self.value, "h": before, "dq": of_query, "dk": of_key}
        none = {"dw": None, "dv": None, "dg": None, "USE_DW": False}
        self._start_of_chunks("chunk_bwd_kernel_dqkwg", "K", {**given, **found}, B=self.sizes.rows, **none)
        self._start_of_chunks("chunk_bwd_kernel_dv", "V", {**given, "dv": of_value})
        return of_query, of_key, of_value

    def _start_of_states(self, name: str, tensors: dict[str, Tensor | None], **constants: Any) -> None:
        """A program per sequence, head, and tile of the state."""
        tensors = {**tensors, **self._tensors, "split_offsets": self.where.first}
        if self._start_again(name, tensors):
            return
        programs, tile = tile_of_states(self.sizes, _processors(self.key.device))
        others = {"gk": None, "gv": None, "USE_GK": False, "USE_GV": False, "BS": CHUNK}
        self._start(name, (programs,), tensors, {**constants, **others}, tile)

    def _start_of_chunks(self, name: str, tiled: str, tensors: dict[str, Tensor | None], **constants: Any) -> None:
        """A program per chunk, head, and tile of the keys' or values' channels."""
        tensors = {**tensors, **self._tensors, "chunk_indices": self.where.places}
        if self._start_again(name, tensors):
            return
        rows, chunks, (heads, *dims), device = self.sizes.rows, self.sizes.chunks, self.sizes.state, self.key.device
        of_request = self.key.dtype, device, self.sizes.state
        tile = _CHOSEN.get(of_request) if name == _TUNED else tile_of_chunks(name, *dims, device.index)

        def grid(found: Any) -> tuple[int, int]:
            return -(-found[tiled] // found[f"B{tiled}"]) * chunks, rows * heads

        constants = {**constants, "scale": 1.0, "HV": heads}
        if tile is not None:
            self._start(name, grid({**tile, **self._constants}), tensors, constants, tile)
            return
        tuner = self._kernels[_TUNER]
        tuner[grid](**tensors, **constants, **self._constants)
        if hasattr(tuner, "best_config"):
            _CHOSEN[of_request] = tuner.best_config.all_kwargs()

    def _start(
        self,
        name: str,
        grid: tuple[int, ...],
        tensors: dict[str, Tensor | None],
        constants: dict[str, Any],
        tile: dict[str, Any],
    ) -> None:
        """With the arguments in the kernel's order."""
        kernel, given = self._kernels[name], {**tensors, **constants, **self._constants, **tile}
        ordered = {argument: given[argument] for argument in kernel.arg_names}
        compiled = launch(kernel, grid, settings={key: x for key, x in tile.items() if key not in ordered}, **ordered)
        if compiled is not None:
            _REPEATS.keep(self._request(name, tensors), compiled, grid, ordered, tensors)

    def _start_again(self, name: str, tensors: dict[str, Tensor | None]) -> bool:
        """Whether a launch like this one is known; then it has been started."""
        return _REPEATS.start(self._request(name, tensors), tensors.values())

    def _request(self, name: str, tensors: dict[str, Tensor | None]) -> tuple[Any, ...]:
        """All that grid, tile and constants follow from."""
        return name, self.key.get_device(), self.sizes, *[None if x is None else x.dtype for x in tensors.values()]


def tile_of_states(sizes: Sizes, processors: int) -> tuple[int, dict[str, int]]:
    """Programs and tile of the kernels of the states: the largest tile with which every processor has a program.

    Triton would choose by the sizes that come first.
    """
    heads, key_dim, value_dim = sizes.state
    programs, tile = 0, dict[str, int]()
    for keys, values, warps, stages in TILES_OF_STATES:
        tile = {"BK": keys, "BV": values, "num_warps": warps, "num_stages": stages}
        programs = -(-key_dim // keys) * -(-value_dim // values) * sizes.sequences * heads
        if programs >= processors:
            break
    return programs, tile


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def tile_of_chunks(name: str, key_dim: int, value_dim: int, device: int | None) -> dict[str, int]:
    """Tile of a kernel that computes gradients, within what the GPU's shared memory allows."""
    from fla.utils import check_shared_mem

    side = 128 if check_shared_mem("hopper", device) else 64 if check_shared_mem("ada", device) else 32
    warps, stages = TILE_OF_CHUNKS
    best = zip((key_dim, value_dim), SIDES_OF_CHUNKS[name], strict=True)
    keys, values = (min(max(1 << (width - 1).bit_length(), 16), largest, side) for width, largest in best)
    return {"BK": keys, "BV": values, "num_warps": warps, "num_stages": stages}
