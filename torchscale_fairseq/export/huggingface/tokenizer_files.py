"""The files of tokenizers in an exported folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchscale_fairseq.data.text.tokenizers import is_fast
from torchscale_fairseq.tools.convert.safetensors_folder import Parts

from ..dictionaries import Dictionaries
from .fast_tokenizer import MASK, make_tokenizer
from .kinds import BOS, CAUSAL, EOS, MASKED, MODULE, PAD, TRANSLATION, UNK, Kind

TARGET = "target_tokenizer"
"""Folder of the tokenizer of the target language where its dictionary is another one."""


def write_tokenizers(folder: Path, kind: Kind, rows: int | None, parts: Parts, dictionaries: Dictionaries) -> str:
    """Write the files; return a clause about them.

    Args:
        folder: an existing one.
        kind: of the model.
        rows: of the (target) embedding; None for a model that reads no text.
        parts: of the checkpoint.
        dictionaries: where they are.
    """
    if rows is None:
        return "without a tokenizer"
    task = (parts.description["entries"].get("cfg") or {}).get("task") or {}
    pieces = dictionaries.pieces_file(task)
    target = dictionaries.symbols(task, "target", rows)
    source = target
    if kind is TRANSLATION:
        source = dictionaries.symbols(task, "source", len(parts.tensors["encoder.embed_tokens.weight"]))
    longest = parts.config.max_source_positions if kind is not CAUSAL else None
    size = _write(folder, source, pieces, kind, longest)
    if source != target:
        (folder / TARGET).mkdir()
        _write(folder / TARGET, target, pieces, kind, None)
    beyond = f", {size - len(source)} of whose pieces the dictionary lacks" if size > len(source) else ""
    kind_of_pieces = "words" if pieces is None else pieces.name if is_fast(str(pieces)) else "SentencePiece"
    return f"with a tokenizer of {kind_of_pieces}{beyond}"


def _write(folder: Path, symbols: Sequence[str], pieces: Path | None, kind: Kind, longest: int | None) -> int:
    """Write one tokenizer; return the size of its vocabulary."""
    tokenizer = make_tokenizer(symbols, pieces, kind)
    tokenizer.save(str(folder / "tokenizer.json"))
    content: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{
            f"{name}_token": symbols[number]
            for name, number in (("bos", BOS), ("pad", PAD), ("eos", EOS), ("unk", UNK))
        },
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left" if kind is CAUSAL else "right",
        "clean_up_tokenization_spaces": False,
    }
    if longest is not None:
        content["model_max_length"] = longest
    if kind is MASKED and MASK in symbols:
        content["mask_token"] = MASK
    else:
        content["split_special_tokens"] = True
    size: int = tokenizer.get_vocab_size()
    if size > len(symbols):
        content |= {"tokenizer_class": "TorchScaleTokenizer", "dictionary_size": len(symbols)}
        content["auto_map"] = {"AutoTokenizer": [None, f"{MODULE}.TorchScaleTokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return size
