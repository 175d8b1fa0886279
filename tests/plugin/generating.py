"""Each option of fairseq's generator with a value that shows, and the generator itself on a tiny model."""

from types import SimpleNamespace
from typing import Any

import torch
from fairseq.dataclass.configs import GenerationConfig
from fairseq.tasks import FairseqTask

BY_THE_GENERATOR: dict[str, dict[str, Any]] = {
    "beam": {"beam": 1},
    "max_len_a": {"max_len_b": 2, "max_len_a": 1},
    "max_len_b": {"max_len_b": 2},
    "min_len": {"min_len": 8, "sampling": True, "temperature": 9.0},
    "match_source_len": {"match_source_len": True},
    "unnormalized": {"unnormalized": True},
    "lenpen": {"lenpen": 2.0},
    "unkpen": {"unkpen": -100.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "sampling": {"sampling": True},
    "sampling_topk": {"sampling": True, "sampling_topk": 1},
    "sampling_topp": {"sampling": True, "sampling_topp": 0.1},
    "temperature": {"temperature": 0.5},
    "diverse_beam_groups": {"diverse_beam_groups": 2},
    "diverse_beam_strength": {"diverse_beam_groups": 2, "diverse_beam_strength": 5.0},
    "diversity_rate": {"diversity_rate": 0.9},
    "score_reference": {"score_reference": True},
}


def texts(model: Any, *, seed: int = 0, ids: tuple[int, int] = (0, 1), **given: Any) -> list[tuple[list[int], float]]:
    """Hypotheses of two sentences with their scores, computed where the model is."""
    dictionary = model.decoder.dictionary
    task = SimpleNamespace(target_dictionary=dictionary)
    arguments = GenerationConfig(**{"beam": 4, "max_len_b": 8, **given})
    generator = FairseqTask.build_generator(task, [model], arguments)
    device = next(model.parameters()).device
    tokens = torch.tensor([[5, 6, 7, 8, 2], [9, 10, 9, 11, 2]], device=device)
    inputs = {"src_tokens": tokens, "src_lengths": torch.tensor([5, 5], device=device)}
    if hasattr(model, "encoder"):
        inputs["prev_output_tokens"] = tokens.roll(1, 1)
    torch.manual_seed(seed)
    with torch.no_grad():
        found = generator.generate(
            [model], {"net_input": inputs, "target": tokens, "id": torch.tensor(ids, device=device)}
        )
    return [(hypothesis["tokens"].tolist(), float(hypothesis["score"])) for beam in found for hypothesis in beam]
