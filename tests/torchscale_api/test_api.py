"""Every public name of TorchScale is there, with its signature (api.txt), and configs have its attributes."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from torchscale_fairseq.torchscale_api.architecture.config import EncoderConfig, integers
from torchscale_fairseq.torchscale_api.component import dilated_attention
from torchscale_fairseq.torchscale_api.component.dilated_attention import DilatedAttention

NOT_KEPT = ("dense_to_sparse", "sparse_to_dense", "gather_kv", "gathering", "scattering")
"""Steps of dilated attention; an AttributeError says what to use."""
AUTOGRAD = ("Allgather", "_AllToAll")


class Name(NamedTuple):
    module: str
    owner: str | None
    name: str
    parameters: str


def listed() -> Iterator[Name]:
    module, owner = "", None
    for line in (Path(__file__).parent / "api.txt").read_text().splitlines():
        if not line.startswith(" "):
            module, owner = line, None
        elif match := re.match(r"  class (\w+)", line):
            owner = match[1]
            yield Name(module, None, owner, "")
        elif match := re.match(r"(\s+)(\w+)\((.*)\)$", line):
            inside = len(match[1]) > 2
            yield Name(module, owner if inside else None, match[2], match[3])


def ours(name: Name) -> Any:
    found: Any = importlib.import_module(name.module.replace("torchscale", "torchscale_fairseq.torchscale_api", 1))
    return getattr(getattr(found, name.owner) if name.owner else found, name.name)


KEPT = [n for n in listed() if n.name not in NOT_KEPT]


@pytest.mark.parametrize("name", KEPT, ids=[f"{n.module}.{n.owner or ''}.{n.name}" for n in KEPT])
def test_name_is_there(name: Name) -> None:
    """With the parameters and defaults of the list, in their order; further ones have defaults."""
    found = ours(name)
    if not name.parameters or name.owner in AUTOGRAD or (name.name == "forward" and "*input" in name.parameters):
        return
    parts = [re.match(r"(\w+)(?::[^=]*)?(?:=(.*))?$", part) for part in split(name.parameters)]
    wanted = [part.groups() for part in parts if part and part[1] != "self"]
    parameters = inspect.signature(found).parameters
    actual = [p for p in parameters.values() if p.name not in ("self", "args", "kwargs", "exc")]
    listed_names = [parameter for parameter, _ in wanted if parameter != "args"]
    assert [p.name for p in actual[: len(listed_names)]] == listed_names
    assert all(p.default is not p.empty for p in actual[len(listed_names) :])
    for parameter, default in wanted:
        if default is not None and default != "EVAL_CAPACITY_TOKEN_FRACTION":
            assert parameters[parameter].default == ast.literal_eval(default)


def split(parameters: str) -> list[str]:
    """At commas outside brackets."""
    return re.split(r",\s*(?![^\[\]]*\])", parameters)


def test_the_list_is_long() -> None:
    assert len(KEPT) > 120


@pytest.mark.parametrize("step", NOT_KEPT)
def test_what_is_not_kept_says_what_to_use(step: str) -> None:
    args = EncoderConfig(segment_length="[4]", dilated_ratio="[1]")
    with pytest.raises(AttributeError, match=rf"{step} is not kept: .* torchscale_fairseq\.dilated_attention"):
        getattr(DilatedAttention(args, 8, 2, self_attention=True), step)


@pytest.mark.parametrize(
    "given",
    [
        "[1024, 5792]",
        "[np.int64(1024), np.int64(5792)]",
        (1024, 5792),
        [1024, 5792],
        torch.tensor([1024, 5792]).numpy(),
    ],
    ids=["text", "numpy-text", "tuple", "list", "array"],
)
def test_lists_in_any_form(given: Any) -> None:
    config = EncoderConfig(segment_length=given, dilated_ratio="[1, 2]")
    config.postprocessing()  # again, which TorchScale cannot
    assert config.segment_length == [1024, 5792] and integers("x", given) == [1024, 5792]


def test_configs_are_changed_in_place() -> None:
    config = EncoderConfig(deepnorm=True, no_such_option=1)
    assert not config.encoder_normalize_before and not config.subln and not hasattr(config, "no_such_option")
    config.override(type("Args", (), {"subln": True, "deepnorm": False, "encoder_layers": None, "dropout": 0.3}))
    assert config.encoder_normalize_before and config.encoder_layers == 12 and config.dropout == 0.3


def test_slices_of_sequences_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of attending within each process's slice; in one process seq_parallel changes nothing."""
    args = EncoderConfig(segment_length="[4]", dilated_ratio="[1]", seq_parallel=True)
    layer, x = DilatedAttention(args, 8, 2, self_attention=True), torch.randn(1, 5, 8)
    layer(x, x, x)
    monkeypatch.setattr(dilated_attention, "get_data_parallel_world_size", lambda: 2)
    with pytest.raises(NotImplementedError, match="set seq_parallel=False, or split them with a SequenceSlice"):
        layer(x, x, x)
