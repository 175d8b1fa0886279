"""Fine-tuning of BEiT-3 on drawn scenes: training, validation, prediction and embeddings."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.logging import metrics
from fairseq.models import MODEL_REGISTRY

from scripts.experiments import beit3_scenes
from scripts.experiments.beit3_scenes import CRITERIONS
from scripts.experiments.scenes import write_scenes
from tests.fairseq_cli import run_fairseq
from tests.helpers import assert_close
from tests.plugin.drawings import make_folders
from tests.plugin.shrunk import shrunk
from tests.plugin.stock_tasks import save_untrained
from tests.tools.in_process import run_tool
from torchscale_fairseq import plugin
from torchscale_fairseq.data.images.answers import read_answers
from torchscale_fairseq.data.images.caption_scores import score_captions
from torchscale_fairseq.data.images.index import Format, read_index
from torchscale_fairseq.data.images.labels import indexed_classes, read_indexed
from torchscale_fairseq.data.problems import DataError, Problems

plugin.register()

FIGURES = {**beit3_scenes.FIGURES, "image_text_retrieval": "text_to_image_r5"}
LOGGED = {**FIGURES, "image_captioning": "ppl"}


@pytest.fixture(scope="module", autouse=True)
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for the texts of all scenes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [write_scenes(folder / task, task, train=40) / "texts.txt" for task in CRITERIONS]
    words = ["data", "train-tokenizer", *texts, "--output", folder, "--model-type", "bpe", "--vocab-size", "330"]
    run_tool(*words).check()
    return folder


def scenes(task: str, folder: Path, tokenizer: Path) -> Path:
    write_scenes(folder, task, train=12, valid=8)
    for name in ("dict.txt", "sentencepiece.bpe.model"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    return folder


def words_of(data: Path, task: str) -> list[str]:
    words = [str(data), "--task", task, "--criterion", CRITERIONS.get(task, "image_classification")]
    words += [*shrunk("beit3_small"), "--img-size", "32", "--patch-size", "8", "--batch-size", "4", "--cpu"]
    return [*words, "--optimizer", "adam", "--lr", "1e-3", "--num-workers", "0", "--max-update", "3"]


@pytest.mark.parametrize("task", CRITERIONS)
def test_learns_and_predicts(task: str, tokenizer: Path, tmp_path: Path) -> None:
    """One batch is learned; figures of a validation are logged; the command writes what evaluations read."""
    data = scenes(task, tmp_path / "data", tokenizer)
    torch.manual_seed(0)
    cfg, made, model = save_untrained(words_of(data, task), tmp_path)
    criterion = made.build_criterion(cfg.criterion)
    for split in ("train", "valid"):
        made.load_dataset(split)
    losses = learn(made, model, criterion)
    assert losses[-1] < 0.95 * losses[0]
    with metrics.aggregate(new_root=True) as logged:
        outputs = [made.valid_step(batch(made, "valid", start), model, criterion)[2] for start in (0, 4)]
        made.reduce_metrics(outputs, criterion)
    assert {"loss", LOGGED[task]} <= set(logged.get_smoothed_values())
    words = ["--checkpoint", tmp_path / "checkpoint_best.pt", data / "valid.jsonl", "--output", tmp_path / "predicted"]
    done = run_tool("predict", *words, "--batch-size", "3", "--device", "cpu").check()
    assert re.search(rf"^{FIGURES[task]}\t[\d.]+$", done.stdout, re.MULTILINE), done.output
    check_predictions(task, (tmp_path / "predicted").read_text())
    if task == "image_text_retrieval":
        check_embeddings(tmp_path / "checkpoint_best.pt", data, tmp_path)


def test_an_image_without_a_caption_is_named_in_training(tokenizer: Path, tmp_path: Path) -> None:
    data = scenes("image_captioning", tmp_path / "data", tokenizer)
    lines = (data / "train.jsonl").read_text().splitlines()
    lines[4] = lines[4].replace('"caption"', '"captoin"')
    (data / "train.jsonl").write_text("\n".join(lines))
    words = words_of(data, "image_captioning")
    with pytest.raises(DataError, match=r"train\.jsonl, line 5 has no caption, .* --skip-invalid"):
        save_untrained(words, tmp_path)[1].load_dataset("train")
    made = save_untrained([*words, "--skip-invalid"], tmp_path)[1]
    made.load_dataset("train")
    assert len(made.dataset("train")) == 11


def batch(task: Any, split: str, start: int = 0) -> Any:
    dataset = task.dataset(split)
    return dataset.collater([dataset[place] for place in range(start, start + 4)])


def learn(task: Any, model: Any, criterion: Any) -> list[float]:
    """The losses of updates on one batch."""
    sample, losses = batch(task, "train"), []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        loss, _, _ = task.train_step(sample, model, criterion, BackwardOnly(), 0)
        assert all(parameter.grad is not None for parameter in trained), "DistributedDataParallel waits for each"
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


class BackwardOnly:
    """What a task's train_step needs of an optimizer."""

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


def check_predictions(task: str, content: str) -> None:
    if task == "visual_reasoning":
        assert len(content.splitlines()) == 8 and re.search(r",(True|False)$", content.splitlines()[0])
        return
    names = {
        "visual_question_answering": {"question_id", "answer"},
        "image_captioning": {"image_id", "caption"},
        "image_text_retrieval": {"image", "text", "image_rank", "text_rank"},
    }
    records = json.loads(content)
    assert len(records) == 8 and set(records[0]) == names[task]


@pytest.mark.slow
@pytest.mark.parametrize("task", CRITERIONS)
def test_trains_resumes_and_validates_by_the_commands(task: str, tokenizer: Path, tmp_path: Path) -> None:
    data = scenes(task, tmp_path / "data", tokenizer)
    words = [*words_of(data, task), "--save-dir", tmp_path, "--no-epoch-checkpoints", "--log-format", "simple"]
    trained = run_fairseq("train", words).check().output
    assert re.search(r"valid on 'valid' subset .*\| loss [\d.]+", trained)
    assert "@ 6 updates" in run_fairseq("train", [*words, "--max-update", "6"]).check().output
    words = [data, "--task", task, "--path", tmp_path / "checkpoint_last.pt", "--batch-size", "4", "--cpu"]
    assert re.search(r"\| loss [\d.]+", run_fairseq("validate", words).check().output)


def check_embeddings(checkpoint: Path, data: Path, folder: Path) -> None:
    """By the command, and by one call from Python."""
    words = ["--checkpoint", checkpoint, "--images", data / "images", "--texts", data / "texts.txt"]
    run_tool("embed", *words, "--output", folder / "vectors.npz", "--batch-size", "7", "--device", "cpu").check()
    arrays = np.load(folder / "vectors.npz")
    hub = MODEL_REGISTRY["beit3_small"].from_pretrained(str(folder), data_name_or_path=str(data))
    found = {"image": hub.embed_images(arrays["images"].tolist()), "text": hub.embed_texts(arrays["texts"].tolist())}
    for name, vectors in found.items():
        assert_close(vectors, torch.from_numpy(arrays[f"{name}_embeddings"]), "float32", name)
        assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)), "float32", "length")
    (folder / "long.txt").write_text("red " * 100 + "\n")
    refused = run_tool("embed", *words[:2], "--texts", folder / "long.txt", "--output", folder / "long.npz")
    assert re.search(r"'red red .*' is \d+ tokens .*, but the model reads \d+; shorten it$", refused.last_line)


def test_image_classification(tmp_path: Path) -> None:
    """The task of LongViT trains BEiT-3's head, and classify-images reads it."""
    data = make_folders(tmp_path / "data", train=2, valid=1)
    torch.manual_seed(0)
    cfg, made, model = save_untrained(words_of(data, "image_classification"), tmp_path)
    made.load_dataset("train")
    losses = learn(made, model, made.build_criterion(cfg.criterion))
    assert losses[-1] < 0.95 * losses[0]
    words = ["--checkpoint", tmp_path / "checkpoint_best.pt", "--device", "cpu", data / "valid" / "red" / "0.png"]
    done = run_tool("classify-images", *words).check()
    assert done.stdout.startswith("file\tclass\tblue\tgreen\tred\tyellow\n")


@torch.no_grad()
def test_features_of_a_classifier_of_images(tmp_path: Path) -> None:
    """Those that its head scores, of pixels that are normalised as in training."""
    data = make_folders(tmp_path / "data", train=2, valid=1)
    save_untrained(words_of(data, "image_classification"), tmp_path)
    hub = MODEL_REGISTRY["beit3_small"].from_pretrained(str(tmp_path))
    image = data / "valid" / "red" / "0.png"
    features = hub.extract_features(image)
    classifier: Any = hub.model
    scores = classifier.head(classifier.fc_norm(features[:, 1:].mean(1)))
    assert_close(scores, classifier([hub._patches(image)]), "float32", "scores")
    assert_close(hub.embed_images([image]), features[:, 0], "float32", "vectors")
    words = ["--checkpoint", tmp_path / "checkpoint_best.pt", "--images", image, "--output", tmp_path / "vectors.npz"]
    refused = run_tool("embed", *words)
    assert re.search(r"with --task image_classification; this command is for a BEiT-3 that was", refused.last_line)


def test_the_released_index_is_read(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    (tmp_path / "answer2label.txt").write_text('{"answer": "net", "label": 0}\n{"answer": "yes", "label": 1}\n')
    assert read_answers(tmp_path / "answer2label.txt") == ["net", "yes"]
    line = {"image_path": "1.png", "text_segment": [5, 6], "labels": [1], "scores": [0.6], "qid": 7}
    (tmp_path / "vqa.train.jsonl").write_text(json.dumps(line) + "\n")
    expected = Format(text=("text_segment", "question"), example="{}")
    (found,) = read_index(tmp_path / "vqa.train.jsonl", expected, Problems(skip=False))
    assert found.text == [5, 6] and found.images == (tmp_path / "1.png",)
    (tmp_path / "vqa.train.jsonl").write_text(json.dumps({"image_path": "1.png"}) + "\n")
    with pytest.raises(DataError, match=r"vqa\.train\.jsonl, line 1 has no text_segment"):
        read_index(tmp_path / "vqa.train.jsonl", expected, Problems(skip=False))


def test_labels_of_an_index(tmp_path: Path) -> None:
    """Numbers as the released index of ImageNet has them, or names."""
    for name in ("1.png", "2.png"):
        (tmp_path / name).touch()

    def written(*labels: Any) -> Path:
        lines = [{"image_path": f"{number}.png", "label": label} for number, label in enumerate(labels, 1)]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / "train.jsonl"

    assert indexed_classes(written(3, 1)) == ["0", "1", "2", "3"]
    assert read_indexed(written(3, 1), ["0", "1", "2", "3"]) == ([tmp_path / "1.png", tmp_path / "2.png"], [3, 1])
    assert indexed_classes(written("tench", "goldfish")) == ["goldfish", "tench"]
    with pytest.raises(DataError, match=r"train\.jsonl, line 2 has the label 7, which the training lacks"):
        read_indexed(written(1, 7), ["0", "1"])


def test_scores_of_captions() -> None:
    """The first reference of an image is enough; BLEU and CIDEr where pycocoevalcap is installed."""
    references = [(1, "a red circle left of a cross"), (1, "a disc"), (2, "a blue square above a circle")]
    found = score_captions([(1, "A disc."), (2, "a blue square above a cross")], references)
    assert found["exact_match"] == 50.0
    perfect = score_captions(references[1:], references)
    assert perfect["exact_match"] == 100.0
    if find_spec("pycocoevalcap"):
        assert perfect["bleu_1"] == pytest.approx(100.0) and found["bleu_1"] < 100.0 and found["cider"] > 0.0
