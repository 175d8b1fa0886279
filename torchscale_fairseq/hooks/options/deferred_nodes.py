"""Models register with hydra at once and are converted to its configuration when it loads them.

fairseq registers each model with hydra's ConfigStore, which converts its dataclass to an OmegaConf object. Converting
all of this package's presets takes half a second at the start of every command, and a run needs one of them.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import reduce
from operator import getitem
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import OmegaConf


class DeferredNode(ConfigNode):
    """An entry of the ConfigStore whose ``node`` is made of a dataclass instance when it is first read.

    Args:
        entry: the entry in whose place it stands; its node is not used.
        content: the dataclass instance.
    """

    def __init__(self, entry: ConfigNode, content: Any):
        self.name, self.group, self.package, self.provider = entry.name, entry.group, entry.package, entry.provider
        self.content = content

    def __getattr__(self, name: str) -> Any:
        if name != "node":
            raise AttributeError(name)
        self.node = OmegaConf.structured(self.content)
        return self.node


@contextlib.contextmanager
def conversion_deferred() -> Iterator[None]:
    """Within the block, defer the conversion of every dataclass that is stored with hydra."""
    stock_store = ConfigStore.store

    def store(self: ConfigStore, name: str, node: Any, group: str | None = None, **options: Any) -> None:
        stock_store(self, name, {} if is_dataclass(node) else node, group, **options)
        if is_dataclass(node):
            entries = reduce(getitem, group.split("/") if group else [], self.repo)
            key = name if name.endswith(".yaml") else f"{name}.yaml"
            entries[key] = DeferredNode(entries[key], node)

    ConfigStore.store = store
    try:
        yield
    finally:
        ConfigStore.store = stock_store
