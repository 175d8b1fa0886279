"""From TorchScale's checkpoint to ours."""

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.convert import official_format as official
from torchscale_fairseq.tools.convert.checkpoint_files import (
    RECORD,
    Conversion,
    build,
    is_ours,
    model_options,
    parameter_order,
)

REPLACED = ("args", "cfg", "optimizer_history")


def to_ours(state: Mapping[str, Any], path: Path, version: str | None = None) -> Conversion:
    """Convert a checkpoint.

    Args:
        state: its content.
        path: its file, to be named in errors.
        version: of TorchScale that made it, by what its owner says.

    Raises:
        InputError: it is not an official one, or of a model that this package lacks.
    """
    options = model_options(state, path)
    arch = _architecture(options, path)
    _refuse_unsupported(options, arch, state, path)
    notes = [_made_by(options, arch, state["model"], path, version)]
    ours = _our_options(options, arch, state["model"], path)
    parameters = OrderedDict((key, value) for key, value in state["model"].items() if not official.is_constant(key))
    order = parameter_order(build(ours, parameters, path), parameters)

    configuration, dropped = _configuration(state, options, ours)
    constants = {key: value for key, value in state["model"].items() if key not in parameters}
    record = {
        "entries": {key: state[key] for key in REPLACED if key in state},
        "constants": constants,
        "names": list(state["model"]),
    }
    if constants:
        notes.append(f"left out, being computed: {len(constants)} constants")
    if dropped:
        notes.append(f"left out, being without effect or unknown to stock fairseq: {', '.join(dropped)}")
    return Conversion(
        {**state, **configuration, "model": parameters, RECORD: record},
        notes + _notes_on_task(state),
        order_before=official.parameter_order(order),
        order_after=order,
    )


def _architecture(options: Mapping[str, Any], path: Path) -> str:
    if is_ours(options):
        raise InputError(f"{path} is a checkpoint of torchscale_fairseq already (--arch {options['_name']})")
    name = str(options["_name"])
    if name not in official.ARCHITECTURES:
        raise InputError(f"{path} is of --arch {name}, not of TorchScale's lm, mt, mlm or retnet")
    return official.ARCHITECTURES[name]


def _refuse_unsupported(options: Mapping[str, Any], arch: str, state: Mapping[str, Any], path: Path) -> None:
    for option, what in official.UNSUPPORTED.items():
        if options.get(option) and option not in official.LIVE[arch]:
            raise InputError(f"{path} has {what} ({option}={options[option]!r}), which cannot be converted")
    for name in state["model"]:
        if ".moe_layer." in name:
            raise InputError(f"{path} has mixture-of-experts layers ({name}), which cannot be converted")
    if state.get("args") is None and isinstance(state["cfg"]["model"], Mapping):  # a namespace holds others' options
        for option in options:
            if not official.is_known(option, arch):
                raise InputError(f"{path} has an option {option} ({options[option]!r}) that TorchScale's {arch} lacks")


def _made_by(
    options: Mapping[str, Any], arch: str, names: Mapping[str, Tensor], path: Path, version: str | None
) -> str:
    """A line on the versions that make these parameters under these options."""
    makers = official.makers(options, official.SIDES[arch], names)
    if makers and version in (None, *makers):
        return f"made by TorchScale {' or '.join(makers)}"
    placement = "; ".join(
        f"{side} {'pre' if official.is_pre_norm(side, names) else 'post'}-norm by its parameters, "
        f"{side}_normalize_before={options.get(f'{side}_normalize_before')}"
        for side in official.SIDES[arch]
    )
    facts = f"(deepnorm={options.get('deepnorm')}, subln={options.get('subln')}; {placement})"
    if makers:
        raise InputError(f"{path} is not of TorchScale {version}, but of {' or '.join(makers)} {facts}")
    raise InputError(
        f"{path} is of no version of TorchScale, whose models have other norms under these options {facts}"
    )


def _our_options(options: Mapping[str, Any], arch: str, names: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    ours = {key: options[key] for key in official.LIVE[arch] if options.get(key) is not None}
    ours |= {"_name": arch, "torchscale_compatible": True, "subln": official.has_inner_norms(names)}
    ours |= {f"{side}_normalize_before": official.is_pre_norm(side, names) for side in official.SIDES[arch]}
    if "rel_pos_buckets" in official.LIVE[arch] and not (ours.get("rel_pos_buckets") and ours.get("max_rel_pos")):
        ours |= {"rel_pos_buckets": 0, "max_rel_pos": 0}  # one alone does nothing there
    if arch in ("lm_base", "retnet_base"):
        ours.setdefault("max_target_positions", options.get("tokens_per_sample"))
    if arch == "mt_base":
        ours = {"max_source_positions": 1024, "max_target_positions": 1024, **ours}
    if arch == "mlm_base":
        ours["share_encoder_input_output_embed"] = True  # whatever the option says
    _refuse_placement(ours, path)
    return ours


def _refuse_placement(ours: Mapping[str, Any], path: Path) -> None:
    if ours.get("deepnorm") and ours["subln"]:
        raise InputError(f"{path} has deepnorm and subln at once, as TorchScale 0.3.0 allows; this cannot be converted")
    pre_norm = ours.get("encoder_normalize_before")
    if pre_norm is None or not (ours["subln"] or ours.get("deepnorm")) or pre_norm == ours["subln"]:
        return
    scheme = "pre-norm encoder with deepnorm" if pre_norm else "post-norm encoder with subln"
    raise InputError(
        f"{path} has a {scheme}, as TorchScale 0.3.0 makes for encoder_normalize_before={pre_norm}; "
        "this cannot be converted"
    )


def _configuration(
    state: Mapping[str, Any], options: Mapping[str, Any], ours: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Our entries in place of those of REPLACED, and the names of options left out."""
    replaced: dict[str, Any] = {"args": None, "cfg": None}
    dropped = sorted(key for key in options if official.is_dead(key))
    if state.get("args") is not None:
        kept = {key: value for key, value in vars(state["args"]).items() if not official.is_dead(key)}
        for section, names in (("task", official.TASKS), ("criterion", official.CRITERIA)):
            if kept.get(section) in names:
                kept[section] = names[kept[section]]
        kept |= {key: value for key, value in ours.items() if key != "_name"}
        replaced["args"] = Namespace(**{**kept, "arch": ours["_name"]})
    else:
        from torchscale_fairseq.tools.convert.stock_sections import (
            stock_sections,
        )  # and fairseq, which takes seconds that --help is spared

        cfg, more = stock_sections(state["cfg"])
        dropped += more
        replaced["cfg"] = {**cfg, "model": dict(ours)}
    if "optimizer_history" in state:
        replaced["optimizer_history"] = [_with_stock_criterion(run) for run in state["optimizer_history"]]
    return replaced, dropped


def _with_stock_criterion(run: Mapping[str, Any]) -> dict[str, Any]:
    name = run.get("criterion_name")
    return {**run, "criterion_name": official.CRITERION_CLASSES.get(name, name)} if name else dict(run)


def _notes_on_task(state: Mapping[str, Any]) -> list[str]:
    if state.get("args") is not None:
        task = getattr(state["args"], "task", None)
    else:
        section = state["cfg"].get("task")
        task = section.get("_name") if isinstance(section, Mapping) else None
    if task not in official.TASKS:
        return []
    return [
        f"task {task} is now {official.TASKS[task]}, whose dictionary ends with <mask>; TorchScale's has <mask>, "
        "<mask_0> to <mask_99> and padding to --required-batch-size-multiple after the words: append them to dict.txt"
    ]
