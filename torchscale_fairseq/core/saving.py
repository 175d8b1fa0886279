"""Trained models in a folder that needs nothing but the core: ``model.safetensors`` and ``config.json``.

Tensors have the names of ``state_dict()``. One that several names share is stored once; the header's entry ``tied``
says what the other names are.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from .architectures.beit3 import BEiT3
from .architectures.decoder import Decoder
from .architectures.encoder import Encoder
from .architectures.encoder_decoder import EncoderDecoder
from .architectures.factory import LayerFactory
from .architectures.longvit import LongViTClassifier
from .architectures.masked_image import MaskedImageModel
from .architectures.retnet import RetNetDecoder
from .architectures.slide_encoder import SlideClassifier
from .architectures.spec import AnyConfig, LayerSpec, decoder_spec, encoder_spec
from .architectures.vit import ViTClassifier
from .config import (
    BEiT3Config,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    LongViTConfig,
    RetNetConfig,
    RetNetEncoderDecoderConfig,
    SlideEncoderConfig,
    ViTConfig,
)
from .errors import InputError
from .layers.embedding import TextEmbedding
from .layers.heads import MaskedLanguageModelHead
from .layers.norm import build_norm
from .ops.positions import PADDING_POSITION

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
Model = (
    Encoder
    | Decoder
    | EncoderDecoder
    | RetNetDecoder
    | BEiT3
    | LongViTClassifier
    | SlideClassifier
    | ViTClassifier
    | MaskedImageModel
)


def load_pretrained(folder: str | Path) -> Model:
    """The model in a folder that ``torchscale-fairseq convert to-safetensors`` has written.

    Padding is the caller's: pass ``encoder_padding_mask`` or ``self_attn_padding_mask`` where tokens are padded. A
    left-padded batch for an encoder made with torchscale_compatible=True also needs
    ``positions=absolute_positions(padding_mask)`` (``core.ops.positions``) to give what the fairseq model gives.

    Returns:
        An Encoder, Decoder, EncoderDecoder, RetNetDecoder, BEiT3, LongViTClassifier, SlideClassifier, ViTClassifier or
        MaskedImageModel in evaluation mode, its parameters in the file's dtype.

    Raises:
        ModuleNotFoundError: the package safetensors is missing.
        FileNotFoundError: one of the two files is.
        InputError: they are damaged, or do not belong together.
        TypeError: the config has an option that this version lacks.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG_FILE)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    model = build(config, tensors).to(next(t.dtype for t in tensors.values() if t.is_floating_point()))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {error}") from None
    return model.eval()


def write_folder(folder: Path, config: AnyConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write what ``load_pretrained`` reads.

    Args:
        folder: an existing one.
        config: of a model that ``load_pretrained`` returns.
        tensors: its state dict.
    """
    content = {"config": type(config).__name__, "options": dataclasses.asdict(config)}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")
    write_tensors(folder / WEIGHTS_FILE, tensors)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, each memory once."""
    owners: dict[Any, str] = {}
    tied = {}
    for name, tensor in tensors.items():
        owner = owners.setdefault((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()), name)
        if owner != name:
            tied[name] = owner
    kept = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items() if name not in tied}
    path.touch()
    mode = path.stat().st_mode
    _safetensors().torch.save_file(kept, path, metadata={"format": "pt", "tied": json.dumps(tied)})
    path.chmod(mode)  # safetensors makes files that nobody else can read


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors that ``write_tensors`` has written; tensors that were tied are one."""
    package = _safetensors()
    _require(path)
    try:
        with package.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not iterable)
            tied = json.loads((file.metadata() or {}).get("tied", "{}"))
    except package.SafetensorError as error:
        raise InputError(f"{path} is truncated or no safetensors file: {error}") from None
    return {**tensors, **{name: tensors[owner] for name, owner in tied.items()}}


def _safetensors() -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "reading and writing model.safetensors needs the package safetensors: pip install safetensors",
            name="safetensors",
        ) from None
    return safetensors


def _require(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; torchscale-fairseq convert to-safetensors writes it, next to its companion, "
            "from a checkpoint of fairseq."
        )


def _read_config(path: Path) -> AnyConfig:
    _require(path)
    try:
        content = json.loads(path.read_text())
        kind = CONFIGS[content["config"]]
        options = content["options"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not the config of a model ({type(error).__name__}: {error})") from None
    return kind(**options)


def build(config: AnyConfig, tensors: Mapping[str, Tensor]) -> Model:
    """A model with fresh values that fits a state dict.

    Args:
        config: of a model that ``load_pretrained`` returns.
        tensors: the state dict, from whose names and shapes vocabularies, classes and heads are read.

    Raises:
        InputError: an embedding or a head is missing.
    """
    return BUILDERS[type(config)](config, tensors)


def _encoder_decoder(config: EncoderDecoderConfig, tensors: Mapping[str, Tensor]) -> EncoderDecoder:
    return EncoderDecoder(
        config,
        _embedding(tensors, "encoder.embed_tokens.weight"),
        _positions(encoder_spec(config)),
        None if config.share_all_embeddings else _embedding(tensors, "decoder.embed_tokens.weight"),
        _positions(decoder_spec(config)),
    )


def _decoder(config: DecoderConfig, tensors: Mapping[str, Tensor]) -> Decoder:
    return Decoder(config, _embedding(tensors, "embed_tokens.weight"), _positions(decoder_spec(config)))


def _retnet(config: RetNetConfig, tensors: Mapping[str, Tensor]) -> RetNetDecoder:
    return RetNetDecoder(config, _embedding(tensors, "embed_tokens.weight"))


def _encoder(config: EncoderConfig, tensors: Mapping[str, Tensor]) -> Encoder:
    embedding = _embedding(tensors, "embed_tokens.weight")
    return Encoder(config, embedding, _positions(encoder_spec(config)), _head(config, embedding, tensors))


def _beit3(config: BEiT3Config, tensors: Mapping[str, Tensor]) -> BEiT3:
    return BEiT3(config)


def _longvit(config: LongViTConfig, tensors: Mapping[str, Tensor]) -> LongViTClassifier:
    return LongViTClassifier(config, _classes(tensors))


def _vit(config: ViTConfig, tensors: Mapping[str, Tensor]) -> ViTClassifier | MaskedImageModel:
    if "patch_head.bias" in tensors:
        return MaskedImageModel(config, len(tensors["patch_head.bias"]))
    return ViTClassifier(config, _classes(tensors))


def _slide_encoder(config: SlideEncoderConfig, tensors: Mapping[str, Tensor]) -> SlideClassifier:
    return SlideClassifier(config, _classes(tensors))


def _classes(tensors: Mapping[str, Tensor]) -> int:
    if "head.bias" not in tensors:
        raise InputError(f"{WEIGHTS_FILE} lacks head.bias, the head that scores classes.")
    return len(tensors["head.bias"])


BUILDERS: dict[type[AnyConfig], Callable[..., Model]] = {
    EncoderConfig: _encoder,
    DecoderConfig: _decoder,
    EncoderDecoderConfig: _encoder_decoder,
    RetNetConfig: _retnet,
    RetNetEncoderDecoderConfig: _encoder_decoder,
    BEiT3Config: _beit3,
    LongViTConfig: _longvit,
    SlideEncoderConfig: _slide_encoder,
    ViTConfig: _vit,
}
CONFIGS = {config.__name__: config for config in BUILDERS}


def _embedding(tensors: Mapping[str, Tensor], name: str) -> TextEmbedding:
    if name not in tensors:
        raise InputError(f"{WEIGHTS_FILE} lacks {name}, the embedding of tokens.")
    entries, width = tensors[name].shape
    return TextEmbedding(entries, width, padding_idx=PADDING_POSITION)


def _positions(spec: LayerSpec) -> nn.Module | None:
    return LayerFactory(spec).position_embedding()


def _head(config: EncoderConfig, embedding: TextEmbedding, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """The head of a masked language model, if these are the tensors of one."""
    if "output_projection.dense.weight" not in tensors:
        return None
    matrix = embedding
    if not config.share_encoder_input_output_embed:
        matrix = _embedding(tensors, "output_projection.weight")
    norm = build_norm(config.norm, config.encoder_embed_dim, config.layernorm_eps)
    return MaskedLanguageModelHead(matrix, config.activation_fn, norm)
