"""Everything that this package replaces or sets in stock fairseq, in the order in which it does so. Replacements in
single tasks and criterions stand in ``task_patches.py``.

Wrappers of one function stand together: each gets the function as the one above it left it, so that the last is called
first. What is replaced for the length of a block alone is not listed: ``after_loading`` and ``one_shard``
(generation), the reading of checkpoints in ``training/trainer.py``, ``Tensor.cuda`` in
``training/deferring_trainer.py``, batches of groups (``sequence_parallel.py``) and the storing of Hydra's nodes
(``options/deferred_nodes.py``).
"""

from functools import partial

import fairseq.trainer
import hydra.core.utils
from fairseq import checkpoint_utils, file_io, models, ngram_repeat_block, options, sequence_scorer, utils
from fairseq.data import data_utils, iterators
from fairseq.dataclass import initialize
from fairseq.distributed import fully_sharded_data_parallel
from fairseq.distributed import utils as distributed_utils
from fairseq.models import BaseFairseqModel, distributed_fairseq_model
from fairseq.optim import FairseqOptimizer
from fairseq.optim.fp16_optimizer import _FP16OptimizerMixin
from fairseq.tasks import FairseqTask
from fairseq.tasks.language_modeling import LanguageModelingTask

from torchscale_fairseq.hooks import running, task_patches
from torchscale_fairseq.hooks.errors import reporting
from torchscale_fairseq.hooks.experts import gradient_clipping
from torchscale_fairseq.hooks.experts import training as experts
from torchscale_fairseq.hooks.generation import alignment, evaluation, lengths
from torchscale_fairseq.hooks.generation import repairs as generation
from torchscale_fairseq.hooks.monitoring import configuration_log
from torchscale_fairseq.hooks.options import fitting, refused, unknown, whole_help
from torchscale_fairseq.hooks.patching import Patch, Setting
from torchscale_fairseq.hooks.runs import finished, launch, preemption
from torchscale_fairseq.hooks.sharding import building
from torchscale_fairseq.hooks.stock import (
    batches,
    best_metric,
    checkpoints,
    command_line,
    cpu,
    embedding_files,
    noise,
    whole_checkpoints,
)
from torchscale_fairseq.hooks.training import adapters, mixed_precision
from torchscale_fairseq.hooks.training.summing_trainer import log_before_an_epoch_ends
from torchscale_fairseq.hooks.training.trainer import build_our_trainer


def apply() -> None:
    """Apply all of :data:`PATCHES`. Idempotent."""
    for patch in PATCHES:
        patch.apply()


def _in_training() -> bool:
    return running.command("train") is not None


PATCHES: tuple[Patch | Setting, ...] = (
    # what the user sees
    Setting(
        noise.hide_warnings_nobody_can_act_on, "fairseq's authors alone can act on them", "`FutureWarning` about how"
    ),
    Setting(configuration_log.log_configuration_to_files, "it fills a screen", "a line of 8,000 characters"),
    Setting(reporting.report_errors_of_this_process, "a sentence helps more than a traceback", "lines of traceback"),
    Patch(
        hydra.core.utils.JobReturn,
        "return_value",
        reporting.report_errors_of_hydra,
        "Hydra catches errors itself",
        "lines of traceback",
        when=reporting.within_a_command,
    ),
    # the command line
    Patch(
        options, "parse_args_and_arch", command_line.keep_bf16_off_the_tpu, "--bf16 sets tpu as well", "'xla_device'"
    ),
    Patch(
        options, "parse_args_and_arch", command_line.validate_without_naming_a_task, "no default", "`KeyError: None`"
    ),
    Patch(options, "parse_args_and_arch", unknown.name_what_is_near, "the nearest choice, for a misspelt one"),
    Patch(options, "parse_args_and_arch", whole_help.list_chosen_options, "--help ends before they are known"),
    Patch(options, "parse_args_and_arch", fitting.check_command_line, "refuses a task that does not fit --arch"),
    Patch(
        initialize,
        "add_defaults",
        refused.check_before_training,
        "refuses options that contradict each other",
        when=_in_training,
    ),
    Patch(initialize, "add_defaults", fitting.check_configuration, "as for the command line, in Hydra"),
    *(
        Patch(
            command,
            "main",
            partial(evaluation.heed_options, command=command),
            "options of evaluation that stock passes over",
            "nothing: every process translates or validates everything",
        )
        for command in evaluation.COMMANDS
    ),
    # processes
    Setting(
        launch.start_workers_as_one_process_does,
        "a worker imports everything anew",
        "workers of loaders start one after the other",
    ),
    Patch(
        distributed_utils,
        "call_main",
        launch.launch_processes_on_cpu,
        "stock counts GPUs",
        "world size is 2 but have 0 available devices",
    ),
    Patch(
        distributed_utils,
        "call_main",
        reporting.report_errors_of_processes,
        "the process that started the others reports",
        "lines of traceback",
        when=reporting.within_a_command,
    ),
    Patch(
        distributed_utils,
        "_broadcast_object_slow",
        checkpoints.broadcast_configs_as_plain_data,
        "weights_only=True refuses OmegaConf's types",
        "GLOBAL omegaconf.dictconfig.DictConfig",
    ),
    Patch(
        distributed_utils,
        "all_gather_list",
        cpu.gather_objects_over_gloo,
        "stock's buffer is on a GPU",
        "type torch.cuda.ByteTensor not available",
    ),
    Patch(
        distributed_utils,
        "get_rank",
        cpu.rank_zero_in_one_process,
        "TorchScale's models ask for it in one process too",
        "Default process group has not been initialized",
    ),
    Patch(
        distributed_fairseq_model,
        "DistributedDataParallel",
        cpu.wrap_cpu_models_without_device_ids,
        "torch refuses device ids for a CPU",
        "DistributedDataParallel device_ids",
    ),
    Patch(
        fully_sharded_data_parallel,
        "fsdp_enable_wrap",
        building.defer_values,
        "the Trainer shards models by FSDP2",
        "pip install fairscale",
    ),
    # models
    Patch(
        models,
        "build_model",
        embedding_files.build_without_files,
        "a checkpoint has the weights",
        "generating from a checkpoint that began from `--encoder-embed-path FILE`",
    ),
    Patch(models, "build_model", adapters.build_with_adapters, "--lora-rank adds adapters to any model of ours"),
    Patch(models, "build_model", building.build_on_meta_device, "a model to be sharded is never whole in memory"),
    Patch(models, "build_model", experts.split_while_training, "processes that train distribute experts"),
    Patch(models, "build_model", fitting.check_checkpoint, "an architecture that is known no earlier"),
    Patch(
        BaseFairseqModel,
        "make_generation_fast_",
        generation.retain_dropout_by_name,
        "stock looks for classes that were renamed",
        "no dropout, or dropout in more modules than were named",
    ),
    Patch(
        utils,
        "parse_embedding",
        embedding_files.parse_with_names,
        "the error names no option",
        "that is missing, broken or of another width",
    ),
    Patch(
        utils,
        "load_embedding",
        embedding_files.load_of_a_width,
        "the error names no option",
        "that is missing, broken or of another width",
    ),
    # training
    Patch(
        fairseq.trainer,
        "Trainer",
        build_our_trainer,
        "experts, sequence parallelism, figures, and updates without waits",
        "after `gradient overflow detected`",
    ),
    Patch("train", "train", finished.train_unless_finished, "stock looks after an update", "nothing: one more update"),
    Patch(
        "train",
        "validate_and_save",
        log_before_an_epoch_ends,
        "figures are logged an update later, and averages of the epoch come next",
    ),
    Patch(
        "train",
        "validate_and_save",
        preemption.save_when_told,
        "a checkpoint before a job's time is up",
        when=preemption.asked,
    ),
    Patch(utils, "clip_grad_norm_", gradient_clipping.clip_with_experts, "SparseClip, and few kernels"),
    Patch(FairseqOptimizer, "all_reduce_grads", gradient_clipping.reduce_with_replicas, "experts held several times"),
    Patch(
        _FP16OptimizerMixin,
        "build_fp32_params",
        cpu.flatten_half_precision_parameters_on_cpu,
        "the copy is named after a CUDA device",
        "Torch not compiled with CUDA enabled",
    ),
    Patch(_FP16OptimizerMixin, "build_fp32_params", gradient_clipping.mark_copies, "copies of experts clip like them"),
    Patch(_FP16OptimizerMixin, "_sync_fp16_grads_to_fp32", mixed_precision.copy_gradients, "one kernel for many"),
    Patch(_FP16OptimizerMixin, "_sync_fp32_params_to_fp16", mixed_precision.copy_parameters, "one kernel for many"),
    Patch(_FP16OptimizerMixin, "clip_grad_norm", mixed_precision.measure_halves, "copies may have no gradients"),
    Patch(_FP16OptimizerMixin, "zero_grad", mixed_precision.forget_gradients, "the next copy replaces them"),
    # checkpoints
    Setting(checkpoints.allow_checkpoint_types, "weights_only=True refuses them", "GLOBAL argparse.Namespace"),
    Patch(
        checkpoint_utils,
        "load_checkpoint_to_cpu",
        checkpoints.explain_unreadable_checkpoints,
        "the error does not name the file; experts may lie in files of their own",
        "PytorchStreamReader failed",
    ),
    Patch(
        checkpoint_utils,
        "load_checkpoint",
        finished.look_for_the_end,
        "stock looks after an update",
        "nothing: one more update",
        when=_in_training,
    ),
    Patch(
        checkpoint_utils,
        "load_checkpoint",
        best_metric.check_after_loading,
        "stock looks it up after the first epoch",
        "`KeyError: 'bleu'` after the first epoch",
    ),
    Patch(
        checkpoint_utils,
        "save_checkpoint",
        whole_checkpoints.name_what_is_left,
        "the error names no file",
        "[Errno 28] No space left on device",
    ),
    Patch(checkpoint_utils, "save_checkpoint", experts.save_together, "processes collect experts together"),
    Patch(
        checkpoint_utils,
        "torch_persistent_save",
        whole_checkpoints.write_checkpoints_whole,
        "part of a checkpoint is left",
        "[Errno 28] No space left on device",
    ),
    Patch(
        file_io.PathManager,
        "copy",
        whole_checkpoints.replace_checkpoints_whole,
        "a file is overwritten in place",
        "nothing; at the next start a truncated checkpoint",
    ),
    # batches
    Patch(
        iterators, "BackgroundConsumer", batches.stop_reading_at_exit, "it outlives the interpreter", "exit status -6"
    ),
    Patch(data_utils, "batch_by_size", batches.keep_the_last_batch, "stock drops it", "16 of 21 sentences"),
    Setting(batches.speak_current_numpy, "names that numpy dropped", "module 'numpy' has no attribute 'compat'"),
    # generation and evaluation
    *(
        Patch(generator, "generate", wrapper, why, failure)
        for generator in generation.GENERATORS
        for wrapper, why, failure in (
            (generation.refuse_prompts_that_would_be_cut, "stock cuts them without a word", "the prompt is cut"),
            (generation.count_diverse_beams_within_the_batch, "places in the data set", "index 20 is out of bounds"),
        )
    ),
    Patch(
        ngram_repeat_block,
        "NGramRepeatBlock",
        generation.block_ngrams_without_the_extension,
        "n-grams are compared with padding",
        "n-grams are repeated",
    ),
    Patch(utils, "replace_unk", alignment.replace_unknown_words, "takes pairs for places", "index 0 is out of bounds"),
    Patch(
        sequence_scorer.SequenceScorer,
        "generate",
        alignment.refuse_alignment_without_attention,
        "the model returns no attention",
        "'NoneType' object is not iterable",
    ),
    Patch(
        FairseqTask, "filter_indices_by_size", lengths.say_what_is_too_long, "no unit", "Size of sample #0 is invalid"
    ),
    Patch(
        LanguageModelingTask,
        "eval_lm_dataloader",
        lengths.score_all_of_the_text,
        "stock leaves it out",
        "the text is not scored",
    ),
    *task_patches.PATCHES,
)
