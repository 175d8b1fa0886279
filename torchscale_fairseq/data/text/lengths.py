"""Texts that are longer than a trained model reads."""

from torchscale_fairseq.core.errors import InputError


def check_length(text: str, tokens: int, limit: int) -> None:
    """Refuse a text that is too long for a model.

    Args:
        text: for the message.
        tokens: of the text, with ``<s>`` and ``</s>``.
        limit: tokens that the model reads.

    Raises:
        InputError: there are more tokens.
    """
    if tokens > limit:
        raise InputError(
            f"'{text[:40]}...' is {tokens} tokens with <s> and </s>, but the model reads {limit}; shorten it"
        )
