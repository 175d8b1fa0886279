"""export onnx: onnxruntime computes and decodes as our models do, in batches and lengths other than the traced ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("fairseq")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("tokenizers")

from tests.export.exported import padded_tokens, write_words
from tests.export.onnx_graphs import Decoding, Graph, exported_graphs
from tests.helpers import assert_close
from tests.tools.families import FAMILIES, Family, write_checkpoint
from tests.tools.in_process import run_tool
from torchscale_fairseq.core.architectures.longvit import LongViTClassifier
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.export.dictionaries import Dictionaries
from torchscale_fairseq.export.onnx.writing import export

LANGUAGE = ["gpt", "compatible", "xpos", "blocks", "bitnet", "retnet", pytest.param("packed", marks=pytest.mark.slow)]
TRANSLATION = ["mt", pytest.param("relative", marks=pytest.mark.slow), "mt_retnet"]


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_masked_model(tmp_path: Path) -> None:
    model, folder = exported_graphs("bert", tmp_path)
    encoder = Graph(folder / "encoder.onnx")
    for rows, seq in ((6, 9), (1, 1)):
        tokens, mask = padded_tokens(rows, seq)
        found = encoder({"tokens": tokens.numpy(), "padding_mask": mask.eq(0).numpy()})["logits"]
        with torch.no_grad():
            expected = model(tokens)[0]
        assert_close(torch.from_numpy(found)[mask.bool()], expected[mask.bool()], "float32")


def test_images_and_text(tmp_path: Path) -> None:
    model, folder = exported_graphs("beit3", tmp_path)
    tokens, mask = (x.flip(1) for x in padded_tokens())
    inputs = {"tokens": tokens.numpy(), "padding_mask": mask.eq(0).numpy(), "images": images(6).numpy()}
    found = torch.from_numpy(Graph(folder / "encoder.onnx")(inputs)["features"])
    with torch.no_grad():
        expected = model.extract_features(tokens, images(6))
    real = torch.cat((torch.ones(6, found.size(1) - mask.size(1)), mask), 1).bool()
    assert_close(found[real], expected[real], "float32")


def test_large_images(tmp_path: Path) -> None:
    model, folder = exported_graphs("longvit", tmp_path)
    found = Graph(folder / "encoder.onnx")({"images": images(1).numpy()})["logits"]
    with torch.no_grad():
        assert_close(torch.from_numpy(found), LongViTClassifier.forward(model, images(1)), "float32")


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_model_decodes(name: str, tmp_path: Path) -> None:
    """Prompts with padding on the left, then token by token, greedily."""
    model, folder = exported_graphs(name, tmp_path)
    tokens, _ = padded_tokens()
    decoding = Decoding(Graph(folder / "step.onnx"), len(tokens), {})
    compare(decoding, tokens, lambda read: model(read)[0])


@pytest.mark.parametrize("name", TRANSLATION)
def test_translation_model_decodes(name: str, tmp_path: Path) -> None:
    model, folder = exported_graphs(name, tmp_path)
    source, mask = padded_tokens()
    padding = mask.eq(0).numpy()
    memory = Graph(folder / "encoder.onnx")({"tokens": source.numpy(), "padding_mask": padding})
    decoding = Decoding(Graph(folder / "step.onnx"), len(source), {**memory, "memory_padding_mask": padding})
    compare(decoding, torch.full((len(source), 1), 2), lambda read: model(source, None, read)[0])


def compare(decoding: Decoding, tokens: Tensor, ours: Any) -> None:
    """Logits of every step, and the tokens that are greedily chosen, of which none is padding or an end."""
    new = tokens
    for _ in range(8):
        found = torch.from_numpy(decoding.read(new.numpy()))
        with torch.no_grad():
            expected = ours(tokens)[:, -new.size(1) :]
        real = new.ne(1)
        assert_close(found[real], expected[real], "float32")
        chosen = found[:, -1:, 4:].argmax(-1) + 4
        assert torch.equal(chosen, expected[:, -1:, 4:].argmax(-1) + 4)
        tokens, new = torch.cat((tokens, chosen), 1), chosen


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        (FAMILIES["longnet"], r"dilated attention \(--segment-length\) over text"),
        (FAMILIES["experts"], r"experts \(--moe-freq\)"),
        (Family("slide_encoder_small", "slide_classification", task_state={"classes": ["a", "b"]}), "a SlideEncoder"),
    ],
    ids=lambda value: value.arch if isinstance(value, Family) else "",
)
def test_models_that_no_graph_holds_are_refused(family: Family, reason: str, tmp_path: Path) -> None:
    write_checkpoint(family, tmp_path / "model.pt")
    with pytest.raises(InputError, match=reason):
        export(tmp_path / "model.pt", tmp_path / "out", Dictionaries(write_words(tmp_path / "words")))
    assert not (tmp_path / "out").exists()


def test_command(tmp_path: Path) -> None:
    write_checkpoint(FAMILIES["bert"], tmp_path / "model.pt")
    data = write_words(tmp_path / "words")
    done = run_tool("export", "onnx", tmp_path / "model.pt", tmp_path / "out", "--data", data)
    assert f"wrote {tmp_path / 'out'}: encoder.onnx, with a tokenizer of words" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"encoder.onnx", "tokenizer.json"}
