"""--pack-documents with --task instruction_tuning: conversations in one row, none of which sees another."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

pytest.importorskip("fairseq")
pytest.importorskip("sentencepiece")

from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from tests.data.corpora import made_corpus
from tests.helpers import assert_close
from tests.plugin.shrunk import shrunk
from torchscale_fairseq import plugin
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.instructions.dataset import InstructionDataset

TRAINING = shlex.split("--task instruction_tuning --tokens-per-sample 32 --criterion cross_entropy --batch-size 4")
PROMPTS = {"bar dar": "gas kir", "fat": "lot", "mus net bis gut": "bis dar", "kor": "gut gat lis"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_corpus(tmp_path_factory.mktemp("packing") / "data")
    turns = [{"prompt": prompt, "completion": answer} for prompt, answer in PROMPTS.items()]
    (folder / "train.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    return folder


def made(data: Path, arch: str, *flags: str) -> tuple[Any, Any]:
    """The task with its data, and the model in float64."""
    plugin.register()
    words = [str(data), *TRAINING, *shrunk(arch), "--dropout", "0", *flags]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(1)
    model = task.build_model(cfg.model).double()
    task.load_dataset("train")
    return task, model


def loss_and_gradients(model: Any, batches: list[dict[str, Any]], pad: int) -> tuple[Tensor, list[Tensor]]:
    """Sums over the answers of all batches."""
    model.zero_grad()
    logits = [model(**batch["net_input"])[0].flatten(0, 1) for batch in batches]
    targets = torch.cat([batch["target"].flatten() for batch in batches])
    loss = cross_entropy(torch.cat(logits), targets, ignore_index=pad, reduction="sum")
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("arch", ["gpt_deepnorm", "gpt_xpos", "retnet_base"])
def test_packed_conversations_are_those_alone(arch: str, data: Path) -> None:
    """Loss and gradients of a packed batch are the sums of those of each conversation."""
    task, model = made(data, arch)
    dataset = task.dataset("train")
    examples = [dataset[place] for place in range(len(dataset))]
    packed = InstructionDataset(dataset.examples, task.dictionary, shuffle=False, packed=True).collater(examples)
    alone = [dataset.collater([example]) for example in examples]
    assert packed["ntokens"] == sum(batch["ntokens"] for batch in alone)
    found, expected = (loss_and_gradients(model, batches, task.dictionary.pad()) for batches in ([packed], alone))
    assert_close(found[0], expected[0], "float64", "loss")
    for (name, _), own, other in zip(model.named_parameters(), found[1], expected[1], strict=True):
        assert_close(own, other, "float64", name)


def test_a_batch_is_one_row_without_padding(data: Path) -> None:
    task = made(data, "gpt_deepnorm", "--pack-documents")[0]
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[place] for place in range(len(PROMPTS))])
    inputs, eos = batch["net_input"], task.dictionary.eos()
    assert inputs["src_tokens"].shape == batch["target"].shape == (1, int(dataset.sizes.sum()))
    assert inputs["src_lengths"].tolist() == [int(dataset.sizes.sum())] and batch["nsentences"] == len(PROMPTS)
    first = [0, *dataset.sizes.cumsum()[:-1].tolist()]
    assert inputs["document_starts"][0].nonzero().flatten().tolist() == first
    assert inputs["src_tokens"][0, first].tolist() == [eos] * len(PROMPTS)
    assert not (inputs["src_tokens"] == task.dictionary.pad()).any()


@pytest.mark.parametrize(
    ("arch", "flags", "message"),
    [
        ("longnet", [], "--arch longnet has dilated attention"),
        ("gpt_deepnorm", ["--sentence-avg"], "over which --sentence-avg cannot average; drop one of the two"),
    ],
)
def test_what_cannot_be_packed(arch: str, flags: list[str], message: str, data: Path) -> None:
    with pytest.raises(InputError, match=message):
        made(data, arch, "--pack-documents", *flags)
