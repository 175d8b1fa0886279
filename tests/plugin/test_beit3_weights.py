"""``--pretrained`` for BEiT-3: files of the released layout, made here."""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

pytest.importorskip("fairseq")

from tests.helpers import assert_close
from tests.plugin.registered import dictionary
from torchscale_fairseq.checkpoints.reading import CheckpointError
from torchscale_fairseq.data.problems import Problems
from torchscale_fairseq.data.text.words import load_text_encoder, load_words
from torchscale_fairseq.models._beit3_jobs import JOBS
from torchscale_fairseq.models._beit3_weights import NO_WORDS, encoder_config
from torchscale_fairseq.models.beit3 import ImageTextModel
from torchscale_fairseq.torchscale_api.architecture.config import EncoderConfig
from torchscale_fairseq.torchscale_api.model.BEiT3 import BEiT3

WORDS = 30
SIZES: dict[str, Any] = {"encoder_embed_dim": 16, "encoder_attention_heads": 2, "encoder_ffn_embed_dim": 24}
SIZES |= {"encoder_layers": 2, "patch_size": 8}
HEADS = {
    "image_classification": {"fc_norm.weight": (16,), "fc_norm.bias": (16,), "head.weight": (5, 16), "head.bias": (5,)},
    "visual_question_answering": {
        "pooler.norm.weight": (16,),
        "pooler.norm.bias": (16,),
        "pooler.dense.weight": (16, 16),
        "pooler.dense.bias": (16,),
        "head.0.weight": (32, 16),
        "head.0.bias": (32,),
        "head.1.weight": (32,),
        "head.1.bias": (32,),
        "head.3.weight": (5, 32),
        "head.3.bias": (5,),
    },
    "visual_reasoning": {
        "head.norm1.weight": (64,),
        "head.norm1.bias": (64,),
        "head.dense1.weight": (32, 64),
        "head.dense1.bias": (32,),
        "head.norm2.weight": (32,),
        "head.norm2.bias": (32,),
        "head.dense2.weight": (2, 32),
        "head.dense2.bias": (2,),
    },
    "image_captioning": {"mlm_head.weight": (WORDS, 16), "mlm_head.bias": (WORDS,)},
    "image_text_retrieval": {"language_head.weight": (16, 16), "vision_head.weight": (16, 16), "logit_scale": ()},
}
"""Names and shapes of the released heads (TorchScale's users: five answers or classes here)."""


def official_encoder(img_size: int, rows: int) -> BEiT3:
    """TorchScale's, by the API whose names and values golden vectors pin."""
    options = {**SIZES, "img_size": img_size, "vocab_size": WORDS, "multiway": True, "no_output_layer": True}
    return BEiT3(EncoderConfig(**options, max_source_positions=rows, layernorm_embedding=False))


def released(path: Path, head: dict[str, tuple[int, ...]], *, img_size: int = 16, rows: int = 40) -> dict[str, Any]:
    """A file as the released code writes it."""
    torch.manual_seed(1)
    official = official_encoder(img_size, rows)
    state = {f"beit3.{name}": torch.randn_like(value) for name, value in official.state_dict().items()}
    state |= {name: torch.randn(shape) for name, shape in head.items()}
    torch.save({"model": state}, path)
    return state


def model_of(job: str, img_size: int = 16, words: int = 10, **options: Any) -> Any:
    """A model of a job with the official layout."""
    entries = dictionary(WORDS)
    values = {**SIZES, "torchscale_compatible": True, "img_size": img_size, "max_source_positions": words, **options}
    config = encoder_config(argparse.Namespace(**values), {}, len(entries))
    if job == "image_text":
        return ImageTextModel(config, entries.pad())
    return JOBS[job].build(config, argparse.Namespace(source_dictionary=entries, num_classes=5))


@pytest.mark.parametrize("job", HEADS)
def test_released_weights_and_head(job: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every tensor of the model is the file's; the table of words' positions is cut to those that are used."""
    state = released(tmp_path / "beit3.pth", HEADS[job])
    model = model_of(job)
    with caplog.at_level(logging.WARNING):
        model.load_weights(tmp_path / "beit3.pth")
    for name, value in model.state_dict().items():
        expected = state[name][:12] if name == "beit3.encoder.embed_positions.B.weight" else state[name]
        assert torch.equal(value, expected), name
    unused = [message for message in caplog.messages if "have no place in this model" in message]
    assert bool(unused) == (not model.normalize_output), "the norm after the last layer"


def test_pretraining_file_and_another_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A head that the file lacks is reported; positions of patches are interpolated."""
    state = released(tmp_path / "beit3.pth", {})
    model = model_of("visual_reasoning", img_size=32)
    with caplog.at_level(logging.WARNING):
        model.load_weights(tmp_path / "beit3.pth")
    assert any("8 tensors are not in" in message and "head.dense1.weight" in message for message in caplog.messages)
    table, name = model.beit3.encoder.embed_positions.A.weight, "beit3.encoder.embed_positions.A.weight"
    assert torch.equal(table[:3], state[name][:3]) and table.size(0) == 3 + 16
    pretraining = model_of("image_text")
    pretraining.load_weights(tmp_path / "beit3.pth")
    assert torch.equal(pretraining.core.text_embed.weight, state["beit3.text_embed.weight"])
    torch.save({"model": pretraining.state_dict()}, tmp_path / "checkpoint_best.pt")
    model.load_weights(tmp_path / "checkpoint_best.pt")
    assert torch.equal(model.beit3.vision_embed.cls_token, pretraining.core.vision_embed.cls_token)


@torch.no_grad()
def test_features_are_those_of_torchscale(tmp_path: Path) -> None:
    """Of images and padded texts, with the weights of a released file."""
    state = released(tmp_path / "beit3.pth", {})
    official, model = official_encoder(16, 40).eval(), model_of("image_text_retrieval").eval()
    official.load_state_dict({name.removeprefix("beit3."): value for name, value in state.items()})
    model.load_weights(tmp_path / "beit3.pth")
    images, words = torch.randn(2, 3, 16, 16), torch.tensor([[0, 7, 8, 9, 2], [0, 5, 2, 1, 1]])
    real = torch.cat((torch.ones(2, 5), words.ne(1)), 1).bool()
    expected = official(words, images, words.eq(1))["encoder_out"]
    assert_close(model.extract_features(words, images)[real], expected[real], "float32", "features")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "beit3.pth"
    state = released(path, {})
    with pytest.raises(CheckpointError, match=r"separate attention weights .*; add --torchscale-compatible\.$"):
        model_of("visual_reasoning", torchscale_compatible=None).load_weights(path)
    with pytest.raises(CheckpointError, match=r"of shape .*; take the --arch and --patch-size of the file"):
        model_of("visual_reasoning", encoder_ffn_embed_dim=32).load_weights(path)
    del state["beit3.encoder.layers.1.ffn.B.fc1.bias"]
    torch.save({"model": state}, path)
    with pytest.raises(
        CheckpointError, match=r"has no beit3\.encoder\.layers\.1\.ffn\.B\.fc1\.bias; it is not a BEiT-3"
    ):
        model_of("visual_reasoning").load_weights(path)


def test_words_are_numbered_as_xlmr_numbers_them(tmp_path: Path) -> None:
    """A model without dict.txt: <s>, <pad>, </s>, <unk>, its pieces from the fourth on moved by one, and <mask>."""
    text = tmp_path / "text.txt"
    text.write_text("a red circle left of a blue square\n" * 10)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "beit3"), vocab_size=30, model_type="bpe", minloglevel=2
    )
    (tmp_path / "beit3.model").rename(tmp_path / "beit3.spm")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "beit3.spm"))
    words = load_words(tmp_path)
    assert len(words) == pieces.get_piece_size() + 2 and words.index("<mask>") == len(words) - 1
    assert [words.bos(), words.pad(), words.eos(), words.unk()] == [0, 1, 2, 3]
    tokens, _ = load_text_encoder(tmp_path, words, Problems(skip=False))([b"a red square zz"])
    numbers = pieces.encode("a red square zz")
    assert tokens.tolist() == [3 if number == pieces.unk_id() else number + 1 for number in numbers]


def test_longer_texts_than_the_files_are_refused(tmp_path: Path) -> None:
    """Positions are trained; the way out loads."""
    path = tmp_path / "beit3.pth"
    released(path, {})
    with pytest.raises(CheckpointError, match=r"texts of (\d+) tokens, .* is 70; give --max-source-positions") as found:
        model_of("visual_reasoning", words=70).load_weights(path)
    model_of("visual_reasoning", words=int(str(found.value).split()[-1].rstrip("."))).load_weights(path)


def test_classes_of_images_after_pretraining_on_shorter_texts(tmp_path: Path) -> None:
    """No text is read, and the task has no --max-source-positions to give."""
    pretraining = model_of("image_text", words=10)
    torch.save({"model": pretraining.state_dict()}, tmp_path / "checkpoint_best.pt")
    config = dataclasses.replace(pretraining.core.config, vocab_size=NO_WORDS, max_source_positions=70)
    model: Any = JOBS["image_classification"].build(config, argparse.Namespace(num_classes=5))
    model.load_weights(tmp_path / "checkpoint_best.pt")
    assert torch.equal(model.beit3.vision_embed.cls_token, pretraining.core.vision_embed.cls_token)
    assert torch.equal(model.beit3.text_embed.weight, pretraining.core.text_embed.weight[:NO_WORDS])
