"""Training language models through fairseq's commands, and checks of their scores."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary

from tests.fairseq_cli import FEW_UPDATES, Finished, column, run_fairseq
from tests.plugin.shrunk import shrunk

CAUSAL = ("gpt_deepnorm", "gpt_magneto", "gpt_xpos", "longnet", "lm_base")
MASKED = ("bert_magneto", "bert_deepnorm", "mlm_base")
LENGTH = 32


def train(data: Path, save_dir: Path, arch: str, *flags: str) -> Finished:
    task = "language_modeling" if arch in CAUSAL else "masked_lm"
    words = [data, "--task", task, *shrunk(arch), *FEW_UPDATES, "--cpu", "--dropout", "0", "--save-dir", save_dir]
    words += ["--tokens-per-sample", LENGTH, "--required-batch-size-multiple", "1"]
    if arch in MASKED:
        words += ["--criterion", "masked_lm", "--max-source-positions", LENGTH]
    return run_fairseq("train", [*words, *flags])


def evaluate(data: Path, checkpoint: Path, *flags: str) -> tuple[int, float]:
    """Tokens scored, and their mean loss in bits."""
    words = [data, "--path", checkpoint, "--cpu", "--tokens-per-sample", str(LENGTH), *flags]
    output = run_fairseq("eval_lm", words).check().output
    tokens = re.search(r"Evaluated ([\d,]+) tokens", output)[1]
    return int(tokens.replace(",", "")), float(re.search(r"Loss \(base 2\): ([\d.]+)", output)[1])


def interact(data: Path, checkpoint: Path, prompts: str, *flags: str) -> Finished:
    words = [data, "--task", "language_modeling", "--path", checkpoint, "--cpu", *flags]
    return run_fairseq("interactive", words, stdin=prompts)


def tokens_of_the_test_set(data: Path) -> torch.Tensor:
    from fairseq.data import data_utils

    dictionary = Dictionary.load(str(data / "dict.txt"))
    sentences = data_utils.load_indexed_dataset(str(data / "test"), dictionary)
    return torch.cat([sentences[i] for i in range(len(sentences))])


def load(checkpoint: Path, data: Path) -> Any:
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], {"data": str(data)})
    return models[0].eval()


def check_beams_and_prompts(run: Path, language_data: Path) -> None:
    """Prompts of different lengths in one batch, and the scores of a beam are those of a full forward."""
    flags = ["--beam", "3", "--max-len-b", "14", "--nbest", "2", "--buffer-size", "2"]
    output = interact(language_data, run, "w1 w2 w3 w4\nw5\n", *flags).check().stdout
    model, dictionary = load(run, language_data), Dictionary.load(str(language_data / "dict.txt"))
    hypotheses, scores = column(output, "H"), column(output, "P")
    for sentence, prompt in enumerate(("w1 w2 w3 w4", "w5")):
        for text, positional in zip(hypotheses[sentence], scores[sentence], strict=True):
            assert text.startswith(prompt)
            ids = dictionary.encode_line(text, add_if_not_exist=False).long()
            with torch.no_grad():
                lprobs = model(torch.cat((torch.tensor([2]), ids[:-1]))[None])[0][0].log_softmax(-1)
            expected = lprobs.gather(1, ids[:, None])[:, 0] / math.log(2)
            found = torch.tensor([float(x) for x in positional.split()])
            new = len(prompt.split())
            torch.testing.assert_close(found[new:], expected[new : len(found)], atol=2e-3, rtol=1e-3)


def check_prefixes(run: Path, language_data: Path) -> None:
    """fairseq-generate goes on from the first words of the test set."""
    words = [language_data, "--task", "language_modeling", "--path", run, "--cpu", "--batch-size", "4", "--beam", "2"]
    words += ["--prefix-size", "1", "--max-len-b", "20", "--gen-subset", "test", "--sample-break-mode", "eos"]
    output = run_fairseq("generate", words).check().stdout
    hypotheses, targets = column(output, "H"), column(output, "T")
    assert len(hypotheses) == 21
    assert hypotheses and all(h[0].split()[:1] == targets[i][0].split()[:1] for i, h in hypotheses.items())


@torch.no_grad()
def nll(model: torch.nn.Module, context: torch.Tensor, targets: torch.Tensor) -> float:
    """Bits of the targets, which follow the context one by one."""
    logits, _ = model(torch.cat((context, targets[:-1]))[None])
    lprobs = logits[0, -len(targets) :].log_softmax(-1)
    return -lprobs.gather(1, targets[:, None]).sum().item() / math.log(2)
