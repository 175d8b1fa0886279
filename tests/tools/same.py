"""Equality to the bit, at any depth."""

from typing import Any

import torch


def assert_same(actual: Any, expected: Any, where: str = "value") -> None:
    """Types, dtypes, keys and every bit; the order of keys aside."""
    assert type(actual) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype and torch.equal(actual, expected), where
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(actual[key], value, f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for index, value in enumerate(expected):
            assert_same(actual[index], value, f"{where}[{index}]")
    else:
        assert actual == expected, where
