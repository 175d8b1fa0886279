"""The sections of fairseq's configuration other than the model's, reduced to those that stock fairseq accepts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.configs import FairseqConfig
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from torchscale_fairseq.tools.convert import official_format as official

_RENAMED = {"task": official.TASKS, "criterion": official.CRITERIA}
_SECTIONS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(FairseqConfig)}


def stock_sections(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration with stock names of task and criterion and without fields that stock fairseq lacks, and
    the names of those. The model's part, and parts that are argparse namespaces, stay as they are."""
    kept: dict[str, Any] = {}
    dropped = []
    for section, content in cfg.items():
        if section not in _SECTIONS:
            dropped.append(section)
            continue
        if isinstance(content, Mapping) and section != "model":
            content = {**content, **_renamed(section, content)}
            fields = _fields(section, content.get("_name"))
            dropped += [f"{section}.{key}" for key in content if fields and key not in fields]
            content = {key: value for key, value in content.items() if not fields or key in fields}
        kept[section] = content
    return kept, dropped


def _renamed(section: str, content: Mapping[str, Any]) -> dict[str, str]:
    names, name = _RENAMED.get(section, {}), content.get("_name")
    return {"_name": names[name]} if name in names else {}


def _fields(section: str, name: str | None) -> set[str]:
    """Names that stock fairseq knows in a section; empty if it knows no such section in particular."""
    if isinstance(_SECTIONS[section], type) and issubclass(_SECTIONS[section], FairseqDataclass):
        kind = _SECTIONS[section]
    elif section == "task":
        kind = TASK_DATACLASS_REGISTRY.get(name)
    else:
        kind = REGISTRIES.get(section, {}).get("dataclass_registry", {}).get(name)
    return set() if kind is None else {field.name for field in dataclasses.fields(kind)} | {"_name"}
