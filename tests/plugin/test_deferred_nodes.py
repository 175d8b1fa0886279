"""Presets are converted for hydra when it loads them, and then as stock converts them."""

from dataclasses import dataclass

import pytest

pytest.importorskip("fairseq")

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from torchscale_fairseq.hooks.options.deferred_nodes import DeferredNode, conversion_deferred


@dataclass
class Options:
    width: int = 3


def test_a_deferred_entry_loads_like_stocks() -> None:
    store = ConfigStore.instance()
    store.store("stock", Options(4), group="test_deferred/model", provider="me")
    with conversion_deferred():
        store.store("ours", Options(4), group="test_deferred/model", provider="me")
        store.store("plain", {"width": 4}, group="test_deferred/model")
    entries = store.repo["test_deferred"]["model"]
    assert isinstance(entries["ours.yaml"], DeferredNode) and not isinstance(entries["plain.yaml"], DeferredNode)
    loaded, stock = (store.load(f"test_deferred/model/{name}.yaml") for name in ("ours", "stock"))
    assert loaded.node == stock.node and OmegaConf.get_type(loaded.node) is Options
    assert (loaded.name, loaded.group, loaded.provider) == ("ours.yaml", stock.group, stock.provider)
    loaded.node.width = 5
    assert store.load("test_deferred/model/ours.yaml").node.width == 4, "what is loaded is a copy"
    del store.repo["test_deferred"]


def test_stocks_store_is_back_afterwards() -> None:
    stock_store = ConfigStore.store
    with pytest.raises(KeyError), conversion_deferred():
        raise KeyError
    assert ConfigStore.store is stock_store
