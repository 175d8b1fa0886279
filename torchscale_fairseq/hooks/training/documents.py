"""Knowing where the documents of packed rows lie without asking the device, where the host had the batch before."""

from typing import Any

from torchscale_fairseq.core.ops.documents import Documents, note_documents
from torchscale_fairseq.hooks.training.packed_sentences import (
    SOURCE_STARTS,
    TARGET_STARTS,
    packed_sentences,
    packs_sentences,
)

STARTS = TARGET_STARTS
"""The argument by which a model learns where documents begin."""


def has_documents(batch: Any) -> bool:
    """Whether a batch says where its documents begin."""
    return isinstance(batch, dict) and STARTS in batch.get("net_input", {})


def with_documents(batch: Any, model: Any) -> Any:
    """A batch on the host that says where documents begin, if the model would find that out by itself, and one whose
    sentences are packed if the model is trained so (--pack-sentences)."""
    if not isinstance(batch, dict) or "net_input" not in batch:
        return batch
    if packs_sentences(model):
        return packed_sentences(batch, model.encoder.dictionary.pad())
    if not getattr(model, "packs_documents", False) or has_documents(batch):
        return batch
    inputs = batch["net_input"]
    return {**batch, "net_input": {**inputs, STARTS: model.document_starts(inputs["src_tokens"])}}


def note_documents_of(on_host: Any, on_device: Any) -> None:
    """Remember of a batch that says where its documents begin where they lie.

    Args:
        on_host, on_device: the same batch of fairseq's; one without document_starts is left alone.
    """
    for name in (STARTS, SOURCE_STARTS):
        if isinstance(on_host, dict) and name in on_host.get("net_input", {}):
            starts = on_device["net_input"][name]
            note_documents(starts, Documents.of(on_host["net_input"][name]).to(starts.device))
