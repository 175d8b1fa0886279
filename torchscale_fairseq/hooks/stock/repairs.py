"""What fails in stock fairseq on current torch, numpy and on CPUs, each mended by one function.

Every function looks for the failing code itself, never at fairseq's version, and does nothing where stock is
sound or already mended. ``docs/stock_repairs.md`` lists the failures by the message a user sees.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import fairseq.trainer
import numpy as np
import torch
import torch.distributed as dist
from fairseq import checkpoint_utils, options
from fairseq.data import data_utils, language_pair_dataset, token_block_dataset
from fairseq.data.dictionary import Dictionary
from fairseq.distributed import utils as distributed_utils
from fairseq.models import distributed_fairseq_model
from fairseq.modules import dynamic_crf_layer
from fairseq.optim import fp16_optimizer
from fairseq.tasks import FairseqTask, language_modeling
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from torchscale_fairseq.checkpoints import reading as checkpoints
from torchscale_fairseq.checkpoints import shards as expert_shards
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.hooks.generation import repairs as generation
from torchscale_fairseq.hooks.generation.alignment import refuse_alignment_without_attention, replace_unknown_words
from torchscale_fairseq.hooks.patching import replace
from torchscale_fairseq.hooks.runs.launch import call_main_on_cpu_too
from torchscale_fairseq.hooks.stock import precision
from torchscale_fairseq.hooks.stock.whole_checkpoints import replace_checkpoints_whole, write_checkpoints_whole
from torchscale_fairseq.hooks.training.trainer import Trainer


def apply() -> None:
    """Mend all that is listed in :data:`REPAIRS`. Idempotent."""
    for repair in REPAIRS:
        repair()


def allow_checkpoint_types() -> None:
    """Checkpoints of models or tasks without a dataclass (``transformer``), and those written while
    ``--eval-bleu`` was on, do not load: since torch 2.6 ``torch.load`` refuses argparse's Namespace and numpy's
    arrays. Both, with fairseq's Dictionary, go on the list of safe types; loading stays ``weights_only=True``.
    """
    checkpoints.allow_stock_types(Dictionary)


def explain_unreadable_checkpoints() -> None:
    """A truncated or foreign file ends in a message of torch that does not name it; now it is named."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def load_checkpoint_to_cpu(path: str, *args: Any, **kwargs: Any) -> Any:
            try:
                return _whole(stock, path, *args, **kwargs)
            except checkpoints.CheckpointError:
                raise
            except checkpoints.UNREADABLE as error:
                raise checkpoints.explain(path, error) from None
            except KeyError as error:
                message = f"{path} is not a checkpoint of fairseq: it has no entry {error}"
                raise checkpoints.CheckpointError(message) from None

        return load_checkpoint_to_cpu

    replace(checkpoint_utils, "load_checkpoint_to_cpu", make)


def _whole(stock: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> Any:
    """A checkpoint with its experts, which may lie in files of their own."""
    state = stock(path, *args, **kwargs)
    return expert_shards.join(state, path, checkpoints.read_mapped) if isinstance(state, dict) else state


@dataclass(frozen=True)
class _PlainConfig:
    """An OmegaConf config on its way to another process."""

    content: Any


def broadcast_configs_as_plain_data() -> None:
    """Resuming with several processes fails on all but the first: the checkpoint's config is broadcast as a
    DictConfig, which ``weights_only=True`` refuses. It now travels as plain containers and is rebuilt on
    arrival; the types allowed to arrive stay those allowed in a checkpoint."""
    torch.serialization.add_safe_globals([distributed_utils._TensorPlaceholder, _PlainConfig])

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def _broadcast_object_slow(obj: Any, *args: Any, **kwargs: Any) -> Any:
            sent = _walk(obj, (DictConfig, ListConfig), _to_plain)
            received = stock(sent, *args, **kwargs)
            return obj if received is sent else _walk(received, (_PlainConfig,), _from_plain)

        return _broadcast_object_slow

    replace(distributed_utils, "_broadcast_object_slow", make)


def _walk(value: Any, types: tuple[type, ...], convert: Callable[[Any], Any]) -> Any:
    """``value`` with each object of ``types`` inside its containers converted."""
    if isinstance(value, types):
        return convert(value)
    if isinstance(value, dict):
        return type(value)((key, _walk(item, types, convert)) for key, item in value.items())
    if type(value) in (list, tuple, set):
        return type(value)(_walk(item, types, convert) for item in value)
    return value


def _to_plain(config: Any) -> _PlainConfig:
    return _PlainConfig(OmegaConf.to_container(config, resolve=True, enum_to_str=True))


def _from_plain(plain: _PlainConfig) -> Any:
    return OmegaConf.create(plain.content, flags={"allow_objects": True})


def flatten_half_precision_parameters_on_cpu() -> None:
    """``--fp16`` on the CPU asks for the current CUDA device in order to name the flat float32 copy of the
    parameters, and fails; with ``--cpu`` on a machine with a GPU it gets a name under which no gradient is ever
    copied, and nothing is learned. On the CPU the copy now gets the name that fairseq looks for: None."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def build_fp32_params(cls: type, args: Any, params: Sequence[Tensor], flatten: bool = True) -> Any:
            if not flatten or any(parameter.device.type != "cpu" for parameter in params):
                return stock(cls, args, params, flatten=flatten)
            flat = torch.nn.Parameter(torch.cat([parameter.detach().float().reshape(-1) for parameter in params]))
            flat.grad = torch.zeros_like(flat)
            return {None: flat}

        return build_fp32_params

    mixin = fp16_optimizer._FP16OptimizerMixin
    stock = mixin.build_fp32_params.__func__
    if "current_device" in stock.__code__.co_names:
        mixin.build_fp32_params = classmethod(make(stock))


def keep_bf16_off_the_tpu() -> None:
    """``--bf16`` and ``--memory-efficient-bf16`` on the command line also set ``tpu``, and fail without
    torch_xla. ``tpu`` now stays off unless ``--tpu`` was given or torch_xla is installed."""
    if find_spec("torch_xla") is not None:
        return

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def parse_args_and_arch(parser: Any, input_args: Any = None, *args: Any, **kwargs: Any) -> Any:
            words = sys.argv[1:] if input_args is None else input_args
            precision.check_words(words)
            result = stock(parser, input_args, *args, **kwargs)
            parsed = result[0] if isinstance(result, tuple) else result
            if getattr(parsed, "tpu", False) and "--tpu" not in words:
                parsed.tpu = False
            return result

        return parse_args_and_arch

    replace(options, "parse_args_and_arch", make)


def validate_without_naming_a_task() -> None:
    """fairseq-validate fails without ``--task``, though it takes the task from the checkpoint. Its arguments are
    now read as those of a translation task, as in every other command."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def parse_args_and_arch(parser: Any, *args: Any, **kwargs: Any) -> Any:
            if any(action.dest == "task" and action.default is None for action in parser._actions):
                parser.set_defaults(task="translation")
            return stock(parser, *args, **kwargs)

        return parse_args_and_arch

    replace(options, "parse_args_and_arch", make)


def keep_the_last_batch() -> None:
    """Training, validation and generation silently leave out the last batch where its size is no multiple of
    ``--required-batch-size-multiple`` (8 by default): of 21 test sentences 16 are translated. Batches are
    consecutive runs of the indices, so whatever they do not reach makes up the missing one."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def batch_by_size(indices: Any, *args: Any, **kwargs: Any) -> Any:
            if inspect.signature(stock).bind(indices, *args, **kwargs).arguments.get("fixed_shapes") is not None:
                return stock(indices, *args, **kwargs)
            if not isinstance(indices, np.ndarray):
                indices = np.fromiter(indices, dtype=np.int64)
            if len(indices) == 0:
                return []
            batches = stock(indices, *args, **kwargs)
            batched = sum(len(batch) for batch in batches)
            return batches if batched == len(indices) else [*batches, indices[batched:]]

        return batch_by_size

    replace(data_utils, "batch_by_size", make)


class _Numpy(ModuleType):
    """numpy, with the names that fairseq uses and numpy has dropped."""

    compat = SimpleNamespace(long=int)
    int = int
    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def percentile(values: Any, percents: Any, interpolation: str = "linear") -> Any:
        return np.percentile(values, percents, method=interpolation)  # type: ignore[call-overload]


def speak_current_numpy() -> None:
    """``--sample-break-mode eos`` and ``--num-batch-buckets`` (and span masking without overlap, and CRF
    decoders) use names that numpy 1.24, 2.0 and 2.4 dropped. Only the modules concerned see them again."""
    has_all = hasattr(np, "compat") and "interpolation" in inspect.signature(np.percentile).parameters
    if has_all and hasattr(np, "int"):
        return
    for module in (data_utils, language_pair_dataset, token_block_dataset, dynamic_crf_layer):
        if module.np is np:
            module.np = _Numpy("numpy")


def launch_processes_on_cpu() -> None:
    """Several processes without GPUs: ``--distributed-world-size 2`` is refused, or with an init method starts
    none and ends with success; under torchrun it divides by the number of GPUs. See ``launch.py``."""
    replace(distributed_utils, "call_main", call_main_on_cpu_too)


def wrap_cpu_models_without_device_ids() -> None:
    """The default ``--ddp-backend pytorch_ddp`` passes a device id, which torch refuses for a model on the CPU."""

    def make(stock: type) -> type:
        class DistributedDataParallel(stock):
            def __init__(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
                if all(parameter.device.type == "cpu" for parameter in module.parameters()):
                    kwargs.update(device_ids=None, output_device=None)
                super().__init__(module, *args, **kwargs)

        return DistributedDataParallel

    replace(distributed_fairseq_model, "DistributedDataParallel", make)


def gather_objects_over_gloo() -> None:
    """Gathering statistics that cannot be summed, in fairseq-validate and for some criterions, goes through a
    CUDA buffer and fails on the CPU."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def all_gather_list(data: Any, group: Any = None, max_size: int = 16384) -> Any:
            group = distributed_utils.get_global_group() if group is None else group
            if distributed_utils.use_xla() or dist.get_backend(group) != "gloo":
                return stock(data, group, max_size)
            gathered = [None] * dist.get_world_size(group)
            dist.all_gather_object(gathered, data, group)
            return gathered

        return all_gather_list

    replace(distributed_utils, "all_gather_list", make)


def rank_zero_in_one_process() -> None:
    """``get_data_parallel_rank()`` raises ``ValueError`` in a run of one process, though its sibling for the
    world size answers 1; TorchScale's models call it. It now answers 0."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def get_rank(group: Any) -> Any:
            if group is None and not distributed_utils.use_xla() and not dist.is_initialized():
                return 0
            return stock(group)

        return get_rank

    replace(distributed_utils, "get_rank", make)


def say_what_is_too_long() -> None:
    """A text longer than the model's positions ends generation and evaluation with a message that has no unit and
    only one way out, which leaves the text out."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def filter_indices_by_size(
            self: Any, indices: Any, dataset: Any, max_positions: Any = None, ignore_invalid_inputs: bool = False
        ) -> Any:
            try:
                return stock(self, indices, dataset, max_positions, ignore_invalid_inputs)
            except Exception:
                _, ignored = dataset.filter_indices_by_size(indices, max_positions)
                if len(ignored) == 0:
                    raise
                tokens, positions = _beyond(dataset.size(ignored[0]), max_positions)
                raise InputError(
                    f"sample #{ignored[0]}, counted from 0, has {tokens} tokens (with </s>), and the model "
                    f"{positions} positions; shorten it, leave such samples out "
                    "with --skip-invalid-size-inputs-valid-test, or train a model with more (--tokens-per-sample of "
                    "language models, --max-source-positions, --max-target-positions)."
                ) from None

        return filter_indices_by_size

    replace(FairseqTask, "filter_indices_by_size", make)


def _beyond(sizes: Any, limits: Any) -> tuple[str, str]:
    """The size, and the limit that it exceeds: of a text, or of the source and target that do."""
    if not isinstance(sizes, (tuple, list)):
        return str(int(sizes)), str(limits)
    limits = limits if isinstance(limits, (tuple, list)) else [limits] * len(sizes)
    sides = zip(("source", "target"), sizes, limits, strict=False)
    beyond = [(name, int(size), limit) for name, size, limit in sides if limit is not None and size > limit]
    return (
        " and ".join(f"{size} {name}" for name, size, _ in beyond),
        " and ".join(f"{int(limit)} {name}" for name, _, limit in beyond),
    )


def score_all_of_the_text() -> None:
    """fairseq-eval-lm leaves out samples that are longer than the model's positions, which with the default
    ``--tokens-per-sample`` can be the whole text. Now it is an error."""

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def eval_lm_dataloader(self: Any, *args: Any, **kwargs: Any) -> Any:
            arguments = inspect.signature(stock).bind(self, *args, **kwargs)
            arguments.apply_defaults()
            window, limit = arguments.arguments["context_window"], arguments.arguments["max_positions"]
            length = self.args.tokens_per_sample + window
            if limit is not None and length > limit and self.args.sample_break_mode in (None, "none"):
                raise InputError(
                    f"--tokens-per-sample ({length}){f' with --context-window ({window})' if window else ''} is "
                    f"longer than the model's {limit} positions; give --tokens-per-sample {limit}"
                    f"{' and a --context-window below it' if window >= limit else ''}."
                )
            return stock(self, *args, **kwargs)

        return eval_lm_dataloader

    replace(language_modeling.LanguageModelingTask, "eval_lm_dataloader", make)


def build_our_trainer() -> None:
    """Makes fairseq-train build :class:`~torchscale_fairseq.hooks.training.trainer.Trainer`, which survives an fp16
    overflow on the CPU, starts an average from a checkpoint without one, finds its place in the data with another
    number of processes, keeps its batches when it is resumed after the first epoch, and explains a checkpoint of
    another architecture."""
    replace(fairseq.trainer, "Trainer", lambda stock: Trainer)


def hide_warnings_nobody_can_act_on() -> None:
    """Each command prints a dozen warnings about how fairseq calls Hydra, torch's autocast and data loaders.
    They concern fairseq's authors alone, and are left out."""
    for message in (
        r"hydra\.experimental\..* is no longer experimental",
        r"\nThe version_base parameter is not specified",
        r"In '.*': Usage of deprecated keyword in package header",
        r"\n'.*' is validated against ConfigStore schema with the same name",
        r"\nThe strict flag in the compose API is deprecated",
        r"\n?Future Hydra versions will no longer change working directory",
        r"'pin_memory' argument is set as true but no accelerator is found",
    ):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    for message in (r"`torch\.cuda\.amp\..*` is deprecated", r"`broadcast_buffers` is deprecated"):
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)


REPAIRS: tuple[Callable[[], None], ...] = (
    allow_checkpoint_types,
    explain_unreadable_checkpoints,
    replace_checkpoints_whole,
    write_checkpoints_whole,
    broadcast_configs_as_plain_data,
    flatten_half_precision_parameters_on_cpu,
    keep_bf16_off_the_tpu,
    validate_without_naming_a_task,
    keep_the_last_batch,
    speak_current_numpy,
    launch_processes_on_cpu,
    wrap_cpu_models_without_device_ids,
    gather_objects_over_gloo,
    rank_zero_in_one_process,
    *generation.REPAIRS,
    replace_unknown_words,
    refuse_alignment_without_attention,
    say_what_is_too_long,
    score_all_of_the_text,
    build_our_trainer,
    hide_warnings_nobody_can_act_on,
)
