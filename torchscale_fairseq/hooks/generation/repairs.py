"""Repairs of stock fairseq's generation, one function per failure.

``torch.jit.script`` compiles a SequenceGenerator, its search and its n-gram blocker from their source, so nothing that
it compiles is wrapped: checks go around ``generate``, which stays Python, and classes are replaced by subclasses that
can be compiled.
"""

import ast
import math
from collections.abc import Callable, Sequence
from typing import Any

from fairseq import ngram_repeat_block, search, sequence_generator
from fairseq.modules import FairseqDropout
from torch import Tensor

from torchscale_fairseq.core.errors import InputError

GENERATORS = (sequence_generator.SequenceGenerator, sequence_generator.SequenceGeneratorWithAlignment)


def refuse_prompts_that_would_be_cut(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A prompt longer than ``--max-len-a``, ``--max-len-b`` and the model's positions allow is cut without a
    word, and nothing is generated. Now it is an error."""

    def generate(self: Any, models: Any, sample: Any, **kwargs: Any) -> Any:
        prefix = kwargs.get("prefix_tokens")
        if prefix is not None and not self.match_source_len:
            _check_prompt(self, sample["net_input"]["src_tokens"].size(1), prefix)
        return stock(self, models, sample, **kwargs)

    return generate


def _check_prompt(generator: Any, source: int, prefix: Tensor) -> None:
    prompt = int((prefix.ne(generator.pad) & prefix.ne(generator.eos)).sum(1).max())
    wanted = int(generator.max_len_a * source + generator.max_len_b)
    if prompt > generator.max_len - 1:
        raise InputError(
            f"a prompt of {prompt} tokens leaves no room in the model's {generator.max_len} positions; shorten "
            "it, or use a model with more (--tokens-per-sample or --max-target-positions in training)."
        )
    if prompt > wanted:
        raise InputError(
            f"a prompt of {prompt} tokens is longer than the {wanted} that --max-len-a ({generator.max_len_a}) "
            f"and --max-len-b ({generator.max_len_b}) allow, which count the prompt too; raise --max-len-b."
        )


def count_diverse_beams_within_the_batch(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--diverse-beam-groups`` looks up its memory of a sentence by the sentence's place in the data set
    instead of in the batch, and fails on data sets of more than one batch."""

    def generate(self: Any, models: Any, sample: Any, **kwargs: Any) -> Any:
        if isinstance(self.search, search.DiverseBeamSearch):
            sample = {name: value for name, value in sample.items() if name != "id"}
        return stock(self, models, sample, **kwargs)

    return generate


def block_ngrams_without_the_extension(stock: type) -> type:
    """``--no-repeat-ngram-size`` blocks nothing where fairseq's CUDA extension is missing: the fallback in Python
    compares n-grams with the padding after the text instead of with its last words. The one that replaces it runs
    where the tokens are."""

    if "banned_tokens" not in ngram_repeat_block.NGramRepeatBlock._no_repeat_ngram.__code__.co_varnames:
        return stock

    class NGramRepeatBlock(stock):
        def _no_repeat_ngram(self, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int) -> Tensor:
            """Rule out each token that would complete an n-gram of the text so far.

            Args:
                tokens: (bsz * beam_size, longest), of which the first begins the sentence and ``step`` more are
                    chosen.
                lprobs: (bsz * beam_size, vocabulary), changed in place.
            """
            n = self.no_repeat_ngram_size
            if step >= n:
                ngrams = tokens[:, 1 : step + 1].unfold(1, n, 1)
                last = tokens[:, step + 2 - n : step + 1].unsqueeze(1)
                repeats = (ngrams[:, :, : n - 1] == last).all(dim=2).nonzero()
                rows, places = repeats[:, 0], repeats[:, 1]
                lprobs[rows, ngrams[rows, places, n - 1]] = -math.inf
            return lprobs

    return NGramRepeatBlock


def retain_dropout_by_name(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--retain-dropout-modules`` finds no layers of stock's transformers, whose classes now end in ``Base``, and
    takes ``TransformerEncoderLayer`` for ``TransformerEncoder`` as well; a name that fits nothing is passed over. Names
    are now read as a list, with or without ``Base``, and each must fit a module."""

    def make_generation_fast_(self: Any, **kwargs: Any) -> None:
        if kwargs.get("retain_dropout_modules") is not None:
            dropouts = [module for module in self.modules() if isinstance(module, FairseqDropout)]
            found = {module.module_name for module in dropouts} - {None}
            names = dropout_names(kwargs["retain_dropout_modules"], {_without_base(name) for name in found})
            kwargs["retain_dropout_modules"] = [name for name in found if _without_base(name) in names]
        stock(self, **kwargs)

    return make_generation_fast_


def _without_base(name: str) -> str:
    return name.removesuffix("Base")


def dropout_names(given: str | Sequence[str], known: set[str]) -> list[str]:
    """The modules that ``--retain-dropout-modules`` names.

    Args:
        given: names separated by commas or spaces, a list of them as Python writes it, or a list.
        known: the names of a model's modules.

    Raises:
        InputError: a name is not among them.
    """
    if isinstance(given, str):
        given = ast.literal_eval(given) if given.startswith("[") else given.replace(",", " ").split()
    for name in given:
        if name not in known:
            raise InputError(
                f"--retain-dropout-modules ({name}) must name modules of the model that have dropout: "
                f"{', '.join(sorted(known))}."
            )
    return list(given)
