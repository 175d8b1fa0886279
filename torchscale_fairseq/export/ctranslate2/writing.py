"""The folder that CTranslate2 loads, from a checkpoint of fairseq."""

import shutil
from pathlib import Path

from torchscale_fairseq.core.architectures.encoder_decoder import EncoderDecoder
from torchscale_fairseq.core.files import make_directory_atomically
from torchscale_fairseq.data.text.pieces import PIECES
from torchscale_fairseq.export.dictionaries import Dictionaries
from torchscale_fairseq.export.plain_model import plain_model
from torchscale_fairseq.tools.convert.safetensors_folder import parts_of

from .requirements import refuse
from .specification import specification


def export(checkpoint: Path, folder: Path, dictionaries: Dictionaries, quantization: str = "float32") -> str:
    """Write the folder, whole or not at all; return a sentence about it.

    Args:
        checkpoint: of a translation model.
        folder: a new one.
        dictionaries: where the dictionaries and the SentencePiece model are.
        quantization: of the weights, as CTranslate2 names it.

    Raises:
        InputError: the model, the checkpoint or the dictionaries do not fit, or the folder exists already.
    """
    parts = parts_of(checkpoint, folder)
    refuse(parts.config)
    task = (parts.description["entries"].get("cfg") or {}).get("task") or {}
    sides = {
        side: dictionaries.symbols(task, language, len(parts.tensors[f"{side}.embed_tokens.weight"]))
        for side, language in (("encoder", "source"), ("decoder", "target"))
    }
    core = plain_model(parts)
    assert isinstance(core, EncoderDecoder)
    model = specification(core, sides["encoder"], sides["decoder"])
    model.validate()
    model.optimize(quantization=quantization)
    pieces = dictionaries.pieces_file(task)
    with make_directory_atomically(folder) as scratch:
        model.save(str(scratch))
        if pieces is not None:
            shutil.copy(pieces, scratch / PIECES)
    return f"{len(sides['encoder']):,} source and {len(sides['decoder']):,} target symbols, weights in {quantization}"
