"""Names of parameters in exported weights."""

from torch import nn

from torchscale_fairseq.core.layers.experts import Experts


def keep_stacked(model: nn.Module) -> None:
    """Let the state dict have experts as they are held, one tensor for all, since transformers sets parameters by their
    names."""
    for module in model.modules():
        if isinstance(module, Experts):
            module._state_dict_hooks.clear()
            module._load_state_dict_pre_hooks.clear()


def tied_names(model: nn.Module) -> dict[str, str]:
    """For each parameter with several names, the first by each of the others."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            tied[name] = owner
    return tied
