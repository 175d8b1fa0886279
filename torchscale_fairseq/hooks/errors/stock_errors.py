"""Errors of stock fairseq that the user can mend, each as a sentence with a way out.

:data:`KNOWN` lists those whose message helps nobody. Of all others that fairseq or this package raises on purpose, the
message is kept.
"""

import linecache
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.optim import OPTIMIZER_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from hydra.errors import ConfigCompositionException
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from torchscale_fairseq.core.errors import InputError, did_you_mean
from torchscale_fairseq.core.reporting import TRACEBACK
from torchscale_fairseq.hooks.options.surfaces import flag_of
from torchscale_fairseq.hooks.running import module_name, package_of

Locals = Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """An error of fairseq.

    Args:
        where: module and function that raises it or that is running meanwhile, as a regular expression.
        kind: of the exception.
        begins: its message, from the start.
        explain: gives the sentence, from the exception and the function's local variables; None if it is another error.
    """

    where: str
    kind: type[BaseException]
    begins: str
    explain: Callable[[BaseException, Locals], str | None]


def frames_of(error: BaseException) -> list[FrameType]:
    """The functions that were running, the outermost first."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames


def sentence_of(error: BaseException) -> str | None:
    """The sentence to show for an error of fairseq; None if it is not one, or only a traceback explains it."""
    if isinstance(error, InputError):
        return None
    for known in KNOWN:
        if isinstance(error, known.kind) and str(error).startswith(known.begins):
            for frame in frames_of(error):
                here = re.fullmatch(known.where, f"{module_name(frame.f_globals)}.{frame.f_code.co_name}")
                sentence = known.explain(error, frame.f_locals) if here else None
                if sentence is not None:
                    return sentence
    return f"{' '.join(str(error).split())} ({TRACEBACK}=1 shows where)" if _on_purpose(error) else None


def _on_purpose(error: BaseException) -> bool:
    """Whether code of fairseq or of this package says ``raise`` where the error comes from, or fairseq's ``assert``,
    with a message."""
    trace = error.__traceback__
    if trace is None or not str(error):
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    package = package_of(trace.tb_frame.f_globals)
    if isinstance(error, AssertionError):
        return package in ("fairseq", "fairseq_cli")
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip()
    return package in ("fairseq", "fairseq_cli", "torchscale_fairseq") and line.startswith("raise ")


def _no_dictionary(error: BaseException, local: Locals) -> str | None:
    if not any(frame.f_code.co_name == "setup_task" for frame in frames_of(error)):
        return None
    path = Path(str(local["f"]))
    if not path.parent.is_dir():
        return f"the data folder {path.parent} does not exist"
    language = re.fullmatch(r"dict\.(.+)\.txt", path.name)
    there = sorted(found.name.split(".")[1] for found in path.parent.glob("dict.*.txt"))
    if language and there:
        return (
            f"{path.parent} has no data in the language {language[1]}, but in {', '.join(there)}: mend --source-lang "
            "or --target-lang"
        )
    return f"{path.parent} has no {path.name}: {_TO_BINARISE}"


_TO_BINARISE = (
    "it is not a folder of data for this task; fairseq-preprocess makes one, and its --destdir is the folder to name"
)


def _no_language_pair(error: BaseException, local: Locals) -> str:
    folder = str(local["paths"][0])
    if not Path(folder).is_dir():
        return f"the data folder {folder} does not exist"
    return f"{folder} has no training data of a pair of languages: {_TO_BINARISE}"


def _no_data_folder(error: BaseException, local: Locals) -> str:
    return f"the data folder {local['path']} does not exist"


def _no_split(error: BaseException, local: Locals) -> str:
    split, path = local["split"], Path(str(local.get("split_path") or local.get("data_path")))
    folder = path if path.is_dir() else path.parent
    there = sorted({found.name.split(".")[0] for found in folder.glob("*.idx")})
    return f"{folder} has no split {split!r}{', but ' + ', '.join(there) if there else ': ' + _TO_BINARISE}"


def _other_optimizer(error: BaseException, local: Locals) -> str:
    before, now = (_registered(name, OPTIMIZER_REGISTRY) for name in _two_names(error))
    return f"the checkpoint {local['filename']} was trained with --optimizer {before}, and this run has {now}; {_RESET}"


def _other_criterion(error: BaseException, local: Locals) -> str:
    before, now = (_registered(name, CRITERION_REGISTRY) for name in _two_names(error))
    return f"the checkpoint {local['filename']} was trained with --criterion {before}, and this run has {now}; {_RESET}"


_RESET = "resume with that one, or add --reset-optimizer to start with fresh optimizer states"


def _two_names(error: BaseException) -> list[str]:
    return str(error).rsplit(". ", 1)[1].split(" vs ")


def _registered(class_name: str, registry: Mapping[str, type]) -> str:
    return next((name for name, kind in registry.items() if kind.__name__ == class_name), class_name)


def _other_scheduler(error: BaseException, local: Locals) -> str:
    now = local["self"].cfg.lr_scheduler._name
    before = ((local["state"].get("cfg") or {}).get("lr_scheduler") or {}).get("_name", "another scheduler")
    return (
        f"the checkpoint {local['filename']} was trained with --lr-scheduler {before}, and this run has {now}, which "
        "cannot resume from its state; resume with that one, or add --reset-lr-scheduler"
    )


def _no_architecture(error: BaseException, local: Locals) -> str:
    return f"name an architecture: --arch mt_deepnorm, say; there are {len(ARCH_MODEL_REGISTRY)} (docs/options.md)"


def _unknown_model(error: BaseException, local: Locals) -> str:
    name = local["model_type"]
    return f"there is no model {name!r}{did_you_mean(name, ARCH_MODEL_REGISTRY)} (model._name)"


def _unknown_task(error: BaseException, local: Locals) -> str:
    name = local["task_name"]
    return f"there is no task {name!r}{did_you_mean(str(name), TASK_REGISTRY)} (task._name)"


def _unknown_choice(error: BaseException, local: Locals) -> str | None:
    kind, name, known = local["registry_name"], local["choice"], local["REGISTRY"]
    hint = did_you_mean(str(name), known) or f"; choose from {', '.join(sorted(known))}"
    return None if name in known else f"there is no {kind.replace('_', '-')} {name!r}{hint} ({kind}._name)"


def _option_of_choice(error: BaseException, local: Locals) -> str:
    """An option that a tokenizer or another part that the user chose cannot do without."""
    chosen = f"{flag_of(local['registry_name'])} {local['choice']}"
    return f"{chosen} needs {flag_of(str(getattr(error, 'key', None)))}"


def _package_of_choice(error: BaseException, local: Locals) -> str | None:
    name = getattr(error, "name", None)
    chosen = f"{flag_of(local['registry_name'])} {local['choice']}"
    return f"{chosen} needs the Python package {name}: pip install {name}" if name else None


def _unfit_value(error: BaseException, local: Locals) -> str:
    """Hydra composes the command line's options, and names the one at fault as ``group.key=value``."""
    key, value = str(error).split()[-1].rpartition(".")[2].split("=", 1)
    flag = flag_of(key)
    reason = str(error.__cause__ or "").splitlines()
    return f"{flag} is missing" if value == "null" else f"{flag} ({value}) cannot be read: {' '.join(reason[:1])}"


def _unfit_task(error: BaseException, local: Locals) -> str:
    args, key = local["args"], str(error).split("'")[1]
    flag = flag_of(key)
    return f"--arch {args.arch} does not fit --task {args.task}, which has no {flag}; give another --task"


def _model_key(error: BaseException, local: Locals) -> str:
    key = str(getattr(error, "key", None) or error)
    name = getattr(local["cfg"], "_name", None)
    hint = did_you_mean(key, local["dc"].__dataclass_fields__)
    return f"{name} has no option {key!r}{hint}"


def _out_of_memory(error: BaseException, local: Locals) -> str:
    first = str(error).split(". ")[0]
    return f"{first}: lower --max-tokens or --batch-size, and raise --update-freq by as much to keep the batch"


KNOWN = (
    Known(
        r"fairseq_cli\.train\.main",
        AssertionError,
        "Must specify batch size",
        lambda error, local: (
            "the size of a batch is missing: give --max-tokens or --batch-size (in Hydra, dataset.max_tokens or "
            "dataset.batch_size)"
        ),
    ),
    Known(r"fairseq\.options\.parse_args_and_arch", RuntimeError, "", _no_architecture),
    Known(r"fairseq\.data\.dictionary\.add_from_file", FileNotFoundError, "", _no_dictionary),
    Known(r"fairseq\.data\.data_utils\.infer_language_pair", FileNotFoundError, "", _no_data_folder),
    Known(r"fairseq\.tasks\..*\.setup_task", Exception, "Could not infer language pair", _no_language_pair),
    Known(r"fairseq\.tasks\..*", FileNotFoundError, "Dataset not found", _no_split),
    Known(r"fairseq\.trainer\.load_checkpoint", AssertionError, "Optimizer does not match", _other_optimizer),
    Known(r"fairseq\.trainer\.load_checkpoint", AssertionError, "Criterion does not match", _other_criterion),
    Known(r"fairseq\.trainer\.load_checkpoint", KeyError, "'best'", _other_scheduler),
    Known(r"fairseq\.tasks\.setup_task", AssertionError, "Could not infer task type", _unknown_task),
    Known(r"fairseq\.registry\.build_x", KeyError, "", _unknown_choice),
    Known(r"fairseq\.registry\.build_x", MissingMandatoryValue, "", _option_of_choice),
    Known(r"fairseq\.registry\.build_x", ModuleNotFoundError, "", _package_of_choice),
    Known(
        r"fairseq\.dataclass\.utils\.convert_namespace_to_omegaconf",
        ConfigCompositionException,
        "Error merging override ",
        _unfit_value,
    ),
    Known(
        r"fairseq\.dataclass\.utils\.convert_namespace_to_omegaconf",
        InterpolationKeyError,
        "Interpolation key 'task.",
        _unfit_task,
    ),
    Known(r"fairseq\.models\.build_model", AssertionError, "Could not infer model type", _unknown_model),
    Known(r"fairseq\.models\.build_model", KeyError, "\"'_name'\"", _unknown_model),
    Known(r".*", torch.OutOfMemoryError, "", _out_of_memory),
    Known(r"fairseq\.dataclass\.utils\.merge_with_parent", OmegaConfBaseException, "Key ", _model_key),
)
