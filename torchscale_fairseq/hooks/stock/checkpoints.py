"""Checkpoints that stock fairseq cannot read, or cannot send to other processes, on current torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.data.dictionary import Dictionary
from fairseq.distributed import utils as distributed_utils
from omegaconf import DictConfig, ListConfig, OmegaConf

from torchscale_fairseq.checkpoints import reading


def allow_checkpoint_types() -> None:
    """Checkpoints of models or tasks without a dataclass (``transformer``), and those written while
    ``--eval-bleu`` was on, do not load: since torch 2.6 ``torch.load`` refuses argparse's Namespace and numpy's
    arrays. Both, with fairseq's Dictionary, go on the list of safe types; loading stays ``weights_only=True``.
    """
    reading.allow_stock_types(Dictionary)


def explain_unreadable_checkpoints(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A truncated or foreign file ends in a message of torch that does not name it; now it is named. Experts and
    tensors in files of their own are read as well, or the parts of them that the caller needs."""

    def load_checkpoint_to_cpu(path: str, *args: Any, parts: reading.Parts = reading.EVERYTHING, **kwargs: Any) -> Any:
        try:
            state = stock(path, *args, **kwargs)
            return reading.complete(state, path, parts) if isinstance(state, dict) else state
        except reading.CheckpointError:
            raise
        except reading.UNREADABLE as error:
            raise reading.explain(path, error) from None
        except KeyError as error:
            message = f"{path} is not a checkpoint of fairseq: it has no entry {error}"
            raise reading.CheckpointError(message) from None

    return load_checkpoint_to_cpu


@dataclass(frozen=True)
class _PlainConfig:
    """An OmegaConf config on its way to another process."""

    content: Any


def broadcast_configs_as_plain_data(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Resuming with several processes fails on all but the first: the checkpoint's config is broadcast as a
    DictConfig, which ``weights_only=True`` refuses. It now travels as plain containers and is rebuilt on
    arrival; the types allowed to arrive stay those allowed in a checkpoint."""
    torch.serialization.add_safe_globals([distributed_utils._TensorPlaceholder, _PlainConfig])

    def _broadcast_object_slow(obj: Any, *args: Any, **kwargs: Any) -> Any:
        sent = _walk(obj, (DictConfig, ListConfig), _to_plain)
        received = stock(sent, *args, **kwargs)
        return obj if received is sent else _walk(received, (_PlainConfig,), _from_plain)

    return _broadcast_object_slow


def _walk(value: Any, types: tuple[type, ...], convert: Callable[[Any], Any]) -> Any:
    """``value`` with each object of ``types`` inside its containers converted."""
    if isinstance(value, types):
        return convert(value)
    if isinstance(value, dict):
        return type(value)((key, _walk(item, types, convert)) for key, item in value.items())
    if type(value) in (list, tuple, set):
        return type(value)(_walk(item, types, convert) for item in value)
    return value


def _to_plain(config: Any) -> _PlainConfig:
    return _PlainConfig(OmegaConf.to_container(config, resolve=True, enum_to_str=True))


def _from_plain(plain: _PlainConfig) -> Any:
    return OmegaConf.create(plain.content, flags={"allow_objects": True})
