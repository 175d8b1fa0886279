"""Every family of models through every converter: it works, or one sentence says why not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("fairseq")
pytest.importorskip("safetensors")

from tests.fairseq_cli import Finished
from tests.tools.families import FAMILIES, write_checkpoint
from tests.tools.in_process import run_tool
from tests.tools.same import assert_same
from torchscale_fairseq import load_pretrained
from torchscale_fairseq.checkpoints.reading import load_checkpoint

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 2]])
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
HIDDEN = torch.tensor([[True, False, True, False], [False, True, False, False]])
REFUSALS = {
    "beit3": "and TorchScale has no such model",
    "longvit": "and TorchScale has no such model",
    "masked_images": "and TorchScale has no such model",
    "survival": "and TorchScale has no such model",
}
"""Of convert to-torchscale, by family; other families are refused for an option."""


def convert(*words: object) -> Finished:
    return run_tool("convert", *words)


def core_of(model: Any) -> nn.Module:
    """The core's model in a model of fairseq."""
    if hasattr(model, "core"):
        return model.core
    if hasattr(model, "head") or hasattr(model, "patch_head"):
        return model
    sides = [getattr(model, side) for side in ("encoder", "decoder") if hasattr(model, side)]
    return model if len(sides) == 2 else sides[0]


@torch.no_grad()
def outputs(family: str, model: Any) -> torch.Tensor:
    """The output of a model of the core."""
    if family == "beit3":
        return model(TOKENS, IMAGES[:1])["encoder_out"]
    if family in ("longvit", "survival"):
        return model.model(IMAGES).mean(1) @ model.head.weight.T
    if family == "masked_images":
        return model.predict(model.model(IMAGES, HIDDEN), HIDDEN)
    if family == "bert":
        return model(TOKENS)["encoder_out"]
    return model(TOKENS, TOKENS)[0] if hasattr(model, "encoder") else model(TOKENS)[0]


@torch.no_grad()
def expected(family: str, model: nn.Module) -> torch.Tensor:
    """The same of a model of fairseq."""
    if family == "bert":
        return model(TOKENS)[0]
    if hasattr(model, "core") or hasattr(model, "head") or hasattr(model, "patch_head"):
        return outputs(family, core_of(model))
    return model(TOKENS, None, TOKENS)[0] if hasattr(model, "encoder") else model(TOKENS)[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_core_loads_the_model_and_the_way_back_is_exact(name: str, tmp_path: Path) -> None:
    model = write_checkpoint(FAMILIES[name], tmp_path / "checkpoint.pt")
    convert("to-safetensors", tmp_path / "checkpoint.pt", tmp_path / "new" / "folder").check()
    loaded = load_pretrained(tmp_path / "new" / "folder")
    assert not loaded.training
    torch.testing.assert_close(outputs(name, loaded), expected(name, model), atol=0, rtol=0)
    convert("from-safetensors", tmp_path / "new" / "folder", tmp_path / "back.pt").check()
    state, back = load_checkpoint(tmp_path / "checkpoint.pt"), load_checkpoint(tmp_path / "back.pt")
    for entry in ("model", "cfg", "task_state"):
        assert_same(back[entry], state[entry], entry)


def test_packed_weights_of_bitnet(tmp_path: Path) -> None:
    model = write_checkpoint(FAMILIES["bitnet"], tmp_path / "checkpoint.pt")
    convert("pack-bitnet", tmp_path / "checkpoint.pt", tmp_path / "packed.pt").check()
    convert("to-safetensors", tmp_path / "packed.pt", tmp_path / "folder").check()
    loaded = load_pretrained(tmp_path / "folder")
    torch.testing.assert_close(outputs("bitnet", loaded), expected("bitnet", model), atol=1e-5, rtol=1e-5)
    convert("from-safetensors", tmp_path / "folder", tmp_path / "back.pt").check()
    back, packed = (load_checkpoint(tmp_path / name)["model"] for name in ("back.pt", "packed.pt"))
    assert_same(dict(back), dict(packed), "model")


@pytest.mark.parametrize("name", FAMILIES)
def test_other_converters_refuse_by_one_sentence(name: str, tmp_path: Path) -> None:
    """Where they do not work, and then write nothing."""
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(FAMILIES[name], path)
    words: list[tuple[Any, ...]] = [
        (name, path) for name in ("to-torchscale", "from-torchscale", "merge-experts", "pack-bitnet")
    ]
    for number, (name_of_tool, *arguments) in enumerate(words):
        output = tmp_path / f"output{number}.pt"
        done = convert(name_of_tool, *arguments, output)
        assert done.returncode in (0, 1) and output.exists() == (done.returncode == 0), done.output
        if done.returncode:
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"torchscale-fairseq convert {name_of_tool}: {path} "), line
        assert name_of_tool != "to-torchscale" or REFUSALS.get(name, "") in done.output


CONVERTERS: dict[str, tuple[Any, ...]] = {
    "convert to-torchscale": ("compatible",),
    "convert pack-bitnet": ("bitnet",),
    "average-checkpoints": ("--inputs", "gpt", "--output"),
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_output_in_a_folder_that_does_not_exist(name: str, tmp_path: Path) -> None:
    arguments = CONVERTERS[name]
    family = next(word for word in arguments if word in FAMILIES)
    write_checkpoint(FAMILIES[family], tmp_path / family)
    output = tmp_path / "nowhere" / "output.pt"
    words = [tmp_path / word if word in FAMILIES else word for word in arguments]
    done = run_tool(*name.split(), *words, output)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    reason = f"{output} cannot be written: No such file or directory; name another folder."
    assert line == f"torchscale-fairseq {name}: {reason}"
