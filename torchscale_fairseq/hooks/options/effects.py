"""Options that a model does not read are refused before it is trained.

The core takes them, so that checkpoints of models that were trained with them load.
"""

from dataclasses import fields
from typing import Any

from fairseq.models import MODEL_REGISTRY

from torchscale_fairseq.core.config.experts import OF_TRAINED_EXPERTS
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed

_FREQUENCIES = ("moe_freq", "encoder_moe_freq", "decoder_moe_freq")
_READ = (*_FREQUENCIES, "moe_expert_count", *OF_TRAINED_EXPERTS, "xpos_rel_pos", "xpos_scale_base")


def check_effects(options: Any) -> None:
    """Refuse options that the model does not read, unless they have the architecture's values.

    Args:
        options: the model's part of fairseq's configuration.

    Raises:
        OptionError: with the options, what they need, and to drop them.
    """
    architecture = MODEL_REGISTRY.get(getattr(options, "_name", None))
    config_class = getattr(architecture, "config_class", None)
    if config_class is None:
        return
    preset = {f.name: f.default for f in fields(config_class) if f.name in _READ} | dict(architecture.preset)
    values = {name: getattr(options, name, None) for name in _READ if name in preset}
    given = {name: value for name, value in values.items() if value not in (None, preset[name])}
    with spelt_as_typed(architecture.preset, values):
        if not (preset | given).get("xpos_rel_pos"):
            _refuse(given, ("xpos_scale_base",), "{xpos_rel_pos}", {"xpos_rel_pos": True})
        frequencies = [name for name in _FREQUENCIES if values.get(name) is not None]
        if not any(values[name] for name in frequencies):
            way = {frequencies[-1]: 1, "moe_expert_count": values["moe_expert_count"] or 8} if frequencies else {}
            _refuse(given, OF_TRAINED_EXPERTS, "experts", way)


def _refuse(given: dict[str, Any], names: tuple[str, ...], needed: str, way: dict[str, Any]) -> None:
    unread = [name for name in names if name in given]
    if unread:
        condition = f"{{{unread[0]}=}} has no use without {needed}"
        raise OptionError(unread[0], given[unread[0]], condition, [way, dict.fromkeys(unread)])
