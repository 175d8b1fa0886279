"""Registers a model with fairseq once per preset."""

from collections.abc import Mapping, Sequence

from fairseq.models import BaseFairseqModel, register_model

from ._options import ModelOptions, Preset, fairseq_dataclass


def register_presets(
    family: type[BaseFairseqModel],
    presets: Mapping[str, Preset],
    config_class: type,
    options: type = ModelOptions,
    from_task: Sequence[str] = (),
) -> None:
    """Register a subclass of ``family`` per preset, each with a dataclass of options of its own.

    Args:
        family: the model.
        presets: by the name of the architecture.
        config_class: a config of the core.
        options: fields that belong to fairseq's side of the model alone.
        from_task: options that are the task's, under the same name.
    """
    for name, preset in presets.items():
        dataclass = fairseq_dataclass(f"{name}_options", config_class, preset, options, from_task)
        own = {"preset": preset, "__doc__": family.__doc__, "__module__": family.__module__}
        model = type(name, (family,), own)
        register_model(name, dataclass=dataclass)(model)
