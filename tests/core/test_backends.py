"""A new backend is a class and an entry in a list; what it refuses is said."""

from typing import Any

import pytest
import torch

from tests.core.models import decoder, tokens
from torchscale_fairseq import DecoderConfig, RetNetConfig
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.attention import AttentionRequest, AttentionResult
from torchscale_fairseq.core.ops.backend import choose
from torchscale_fairseq.core.ops.backends import ATTENTION, Naive
from torchscale_fairseq.core.ops.retention_forms import RETENTION, Torch


class Halved:
    """A backend of attention, as a user would add one."""

    name = "halved"

    def refusal(self, request: AttentionRequest) -> str | None:
        return None if request.mask.bias is None else "knows no bias"

    def run(self, request: AttentionRequest) -> AttentionResult:
        return Naive().run(request)[0] / 2, None


def test_a_backend_of_attention_in_ten_lines() -> None:
    with pytest.raises(
        InputError, match=r"attention_backend \('halved'\) must be one of sdpa, naive, flash_attn; give"
    ):
        DecoderConfig(attention_backend="halved")
    ATTENTION.append(Halved())
    try:
        ours, naive = (decoder(attention_backend=name) for name in ("halved", "naive"))
        attentions: list[Any] = [layer.self_attn for layer in naive.layers]
        for attention in attentions:
            for parameter in attention.v_proj.parameters():
                parameter.data /= 2
        assert torch.allclose(ours(tokens(2, 5))[0], naive(tokens(2, 5))[0], atol=1e-5)
        with pytest.raises(
            InputError, match=r"attention_backend=halved knows no bias; give attention_backend='sdpa'\."
        ):
            decoder(attention_backend="halved", rel_pos_buckets=8, max_rel_pos=16)(tokens(2, 5))
        with pytest.raises(
            InputError, match=r"attention_backend \('halved'\) must be one of sdpa, naive, flash_attn in dilated"
        ):
            decoder(attention_backend="halved", segment_length=[4], dilated_ratio=[1])(tokens(2, 5))
    finally:
        ATTENTION.pop()


def test_a_backend_of_retention_is_an_option_too() -> None:
    class Mine(Torch):
        name = "mine"

    RETENTION.insert(0, Mine())
    try:
        assert RetNetConfig(retention_backend="mine").retention_backend == "mine"
    finally:
        RETENTION.pop(0)
    with pytest.raises(InputError, match=r"retention_backend \('mine'\) must be one of auto, fla, torch"):
        RetNetConfig(retention_backend="mine")


class Refusing:
    name = "refusing"

    def refusal(self, request: Any) -> str:
        return f"cannot serve {request}"

    def run(self, request: Any) -> Any:
        raise AssertionError("it refused")


class Serving(Refusing):
    name = "serving"

    def refusal(self, request: Any) -> None:
        return None


def test_choice() -> None:
    backends = [Refusing(), Serving()]
    assert choose(backends, 3).name == choose(backends, 3, "serving").name == "serving"
    with pytest.raises(InputError, match=r"kind=refusing cannot serve 3; give kind='serving'\."):
        choose(backends, 3, "refusing", option="kind")
    with pytest.raises(InputError, match=r"kind=refusing cannot serve 3; give kind='auto'\."):
        choose(backends, 3, "refusing", option="kind", instead="auto")
    with pytest.raises(InputError, match=r"kind \('other'\) must be one of refusing, serving; give"):
        choose(backends, 3, "other", option="kind")


def test_a_refusal_in_compiled_code_is_said_too() -> None:
    """By the backend that a user named, not by the compiler."""

    def layer(x: torch.Tensor) -> Any:
        chosen = choose([Refusing(), Serving()], "padding", "refusing", option="the_option", instead="auto")
        return chosen.run(x + 1)

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager")
    with pytest.raises(InputError, match=r"the_option=refusing cannot serve padding; give the_option='auto'\."):
        compiled(torch.zeros(2))
