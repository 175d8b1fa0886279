"""The methods that fairseq's models promise, of each of our families beside stock's kin; and ``from_pretrained``."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq import checkpoint_utils, utils
from fairseq.data import Dictionary
from fairseq.models import MODEL_REGISTRY

from tests.fairseq_cli import run_fairseq
from tests.plugin.drawings import make_drawings, make_folders
from tests.plugin.shrunk import shrunk
from tests.plugin.stock_tasks import LENGTH, built, save_untrained, stock_data, words_of
from torchscale_fairseq import plugin
from torchscale_fairseq.checkpoints.reading import CheckpointError
from torchscale_fairseq.core.errors import InputError

plugin.register()

WIDTH = 16
SIDES = "--encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-attention-heads 2"
STOCK = {
    "translation": f"--arch transformer {SIDES} {SIDES.replace('encoder', 'decoder')}",
    "language_modeling": f"--arch transformer_lm {SIDES.replace('encoder', 'decoder')} --decoder-input-dim 16 "
    "--decoder-output-dim 16",
    "masked_lm": f"--arch roberta {SIDES} --max-positions {LENGTH} --criterion masked_lm",
}
OURS = {
    "mt_deepnorm": "translation",
    "mt_retnet": "translation",
    "gpt_deepnorm": "language_modeling",
    "retnet_base": "language_modeling",
    "bert_magneto": "masked_lm",
}
TOKENS = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 1]])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock_data(tmp_path_factory.mktemp("interface") / "data")


def command(arch: str, task: str, data: Path) -> list[str]:
    flags = [*shrunk(arch), *(["--criterion", MODEL_REGISTRY[arch].fits[task][0]])]
    return [*words_of(task, data), *flags, "--batch-size", "8", "--cpu"]


@pytest.fixture(scope="module")
def kin(data: Path) -> dict[str, Any]:
    """Stock's model for each task."""
    flags = ["--batch-size", "8", "--cpu"]
    return {task: built([*words_of(task, data), *shlex.split(arch), *flags])[2].eval() for task, arch in STOCK.items()}


def described(value: Any) -> Any:
    """Shapes and types, in which two models must agree."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype)
    return type(value).__name__


def promises(model: Any, task: str) -> dict[str, Any]:
    """What a model returns from the methods that fairseq's commands, criterions and interfaces call."""
    inputs = {"src_tokens": TOKENS, "src_lengths": torch.tensor([4, 3])}
    if task == "translation":
        inputs["prev_output_tokens"] = TOKENS
    else:
        inputs.pop("src_lengths")  # for stock's sake
    output = model(**inputs)
    sample = {"target": TOKENS, "net_input": inputs}
    result = {
        "forward": output[0],
        "max_positions": model.max_positions(),
        "get_targets": model.get_targets(sample, output),
        "get_normalized_probs": model.get_normalized_probs(output, log_probs=True, sample=sample),
    }
    assert result["get_normalized_probs"].exp().sum(-1).allclose(torch.ones(TOKENS.shape))
    if task == "masked_lm":
        features = model(**inputs, features_only=True)[0]
        model.register_classification_head("head", num_classes=3)
        scores, extra = model(**inputs, features_only=True, classification_head_name="head")
        result |= {"scores": scores, "extra": type(extra).__name__, "targets": sorted(model.supported_targets)}
        return result | {"features": features}
    result["max_decoder_positions"] = model.max_decoder_positions()
    more = {"encoder_out": None} if task == "language_modeling" else {}  # which stock's decoder insists on
    features, _ = model.extract_features(**inputs, **more)
    assert model.output_layer(features).allclose(output[0], atol=1e-5)
    result["features"] = features
    if task == "language_modeling":
        result["targets"] = sorted(model.supported_targets)
    return result


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=[pytest.mark.slow] if "retnet" in arch else []) for arch in OURS]
)
@torch.no_grad()
def test_methods_return_what_stocks_do(arch: str, data: Path, kin: dict[str, Any]) -> None:
    task = OURS[arch]
    ours, stocks = (promises(model, task) for model in (built(command(arch, task, data))[2].eval(), kin[task]))
    assert {name: described(value) for name, value in ours.items()} == {n: described(v) for n, v in stocks.items()}
    assert ours["features"].shape == (*TOKENS.shape, WIDTH)


def test_from_pretrained_masked(data: Path, tmp_path: Path) -> None:
    """Features, masks and a head, from text, without a tokenizer."""
    _, task, model = save_untrained(command("bert_magneto", "masked_lm", data), tmp_path)
    hub = MODEL_REGISTRY["bert_magneto"].from_pretrained(str(tmp_path))
    tokens = hub.encode("w1 w2 w3")
    assert [task.dictionary[token] for token in tokens] == ["<s>", "w1", "w2", "w3", "</s>"]
    assert hub.decode(tokens).strip() == "w1 w2 w3"
    model.eval()
    assert model.extract_features(tokens[None])[0].shape == (1, 5, WIDTH)  # stock's roberta returns logits here
    assert hub.extract_features(tokens).allclose(model(tokens[None], features_only=True)[0])
    assert [state.shape for state in hub.extract_features(tokens, return_all_hiddens=True)] == [(1, 5, WIDTH)] * 2
    filled = hub.fill_mask("w1 <mask> w3", topk=3)
    assert len(filled) == 3 and all(text == f"w1{word} w3" for text, _, word in filled)
    assert filled[0][1] >= filled[1][1] >= filled[2][1] > 0
    with pytest.raises(InputError, match="must contain one <mask>, not 2"):
        hub.fill_mask("<mask> <mask>")
    hub.register_classification_head("new", num_classes=3)
    assert hub.predict("new", tokens).exp().sum().item() == pytest.approx(1)


def test_from_pretrained_classifier(data: Path, tmp_path: Path) -> None:
    save_untrained(command("bert_magneto", "sentence_prediction", data), tmp_path)
    hub = MODEL_REGISTRY["bert_magneto"].from_pretrained(str(tmp_path))
    probabilities = hub.classify("w1 w2", "w3")
    assert list(probabilities) == ["no", "yes"] and sum(probabilities.values()) == pytest.approx(1)
    assert probabilities["yes"] == hub.predict("sentence_classification_head", hub.encode("w1 w2", "w3")).exp()[0, 1]
    words = [*words_of("sentence_prediction", data), "--path", tmp_path / "checkpoint_best.pt", "--batch-size", "8"]
    assert "accuracy" in run_fairseq("validate", words).check().output  # by the checkpoint's criterion


def test_from_pretrained_causal(data: Path, tmp_path: Path) -> None:
    _, task, model = save_untrained(command("gpt_deepnorm", "language_modeling", data), tmp_path)
    hub = MODEL_REGISTRY["gpt_deepnorm"].from_pretrained(str(tmp_path))
    score = hub.score("w1 w2")
    tokens = task.dictionary.encode_line("w1 w2", add_if_not_exist=False).long()
    logits = model.eval()(tokens.roll(1)[None])[0]
    expected = logits.log_softmax(-1)[0, range(2), tokens[:2]]
    assert score["positional_scores"].allclose(expected, atol=1e-5)
    assert hub.sample("w1 w2", max_len_b=8).startswith("w1 w2")


def test_from_pretrained_elsewhere(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint has the path of its data as it was given: relative to a folder that it does not name."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (project / "data").mkdir(parents=True)
    for file in (data / "pairs").iterdir():
        (project / "data" / file.name).symlink_to(file)
    monkeypatch.chdir(project)
    words = ["data", *command("mt_deepnorm", "translation", data)[1:]]
    save_untrained(words, project / "runs" / "first")
    monkeypatch.chdir(elsewhere)
    hub = MODEL_REGISTRY["mt_deepnorm"].from_pretrained(str(project / "runs" / "first"))
    assert isinstance(hub.translate("w1 w2", beam=1, max_len_b=5), str)
    (project / "data").rename(project / "moved")
    with pytest.raises(CheckpointError, match=r"was trained on data, which is not there; name the folder"):
        MODEL_REGISTRY["mt_deepnorm"].from_pretrained(str(project / "runs" / "first"))
    with pytest.raises(CheckpointError, match=r"data_name_or_path \(nowhere\) does not exist"):
        MODEL_REGISTRY["mt_deepnorm"].from_pretrained(str(project / "runs" / "first"), data_name_or_path="nowhere")


def test_pieces_without_their_tokenizer(data: Path, tmp_path: Path) -> None:
    """Text that is split at spaces would be nothing but unknown words."""
    save_untrained(command("mt_deepnorm", "translation", data), tmp_path / "run")
    for language in ("en", "de"):
        (tmp_path / f"dict.{language}.txt").write_text(
            (data / "pairs" / f"dict.{language}.txt").read_text().replace("w1 ", "\N{LOWER ONE EIGHTH BLOCK}w ")
        )
    load = MODEL_REGISTRY["mt_deepnorm"].from_pretrained
    with pytest.raises(InputError, match=r"sentencepiece.bpe.model is not there"):
        load(str(tmp_path / "run"), data_name_or_path=str(tmp_path))
    assert load(str(tmp_path / "run"), data_name_or_path=str(tmp_path), bpe=None).bpe is None


@pytest.mark.parametrize("arch", ["mt_deepnorm", pytest.param("transformer", marks=pytest.mark.slow)])
def test_a_checkpoint_does_not_need_the_embeddings_it_began_from(arch: str, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "vectors.txt"
    file.write_text(f"1 {WIDTH}\nw1{' 0.5' * WIDTH}\n")
    flags = shrunk(arch) if arch.startswith("mt") else shlex.split(STOCK["translation"])
    words = [*words_of("translation", data), *flags, "--batch-size", "8", "--encoder-embed-path", str(file)]
    _, task, model = save_untrained(words, tmp_path)
    row = model.encoder.embed_tokens.weight[task.source_dictionary.index("w1")]
    assert (row == 0.5).all()
    file.unlink()
    models, *_ = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "checkpoint_best.pt")])
    assert models[0].encoder.embed_tokens.weight.equal(model.encoder.embed_tokens.weight)


def test_files_of_embeddings_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "vectors.txt"
    words = Dictionary()
    words.add_symbol("w1")
    with pytest.raises(InputError, match=r"vectors.txt is not there; mend the path, or leave the option out"):
        utils.parse_embedding(str(file))
    file.write_text("w1\nw1 x\n")
    with pytest.raises(InputError, match=r"--encoder-embed-path .*vectors.txt is not a file of vectors"):
        utils.parse_embedding(str(file))
    file.write_text("1 1\nw1 0.5\n")
    with pytest.raises(InputError, match=r"the vector of 'w1' has 1 entries, and the model's embedding 4"):
        utils.load_embedding(utils.parse_embedding(str(file)), words, torch.nn.Embedding(len(words), 4))


@pytest.mark.parametrize(
    ("arch", "task", "flags", "message"),
    [
        ("bert_magneto", "sentence_prediction", "--num-classes 1", r"--num-classes \(1\) is less than the 2 labels in"),
        ("bert_magneto", "sentence_prediction", "--num-classes 0", "--task sentence_prediction needs --num-classes"),
        ("mt_deepnorm", "translation", "--load-alignments", "--load-alignments trains attention weights"),
    ],
)
def test_options_of_tasks_that_do_not_fit(arch: str, task: str, flags: str, message: str, data: Path) -> None:
    with pytest.raises(InputError, match=message):
        built([*command(arch, task, data), *flags.split()])


def test_from_pretrained_image_models(tmp_path: Path) -> None:
    folders = make_folders(tmp_path / "folders", train=1, valid=1)
    pictures = make_drawings(tmp_path / "pictures", train=8, valid=2)
    sizes = ["--img-size", "32", "--patch-size", "8", "--batch-size", "2", "--cpu"]
    words = [str(folders), "--task", "image_classification", "--criterion", "image_classification"]
    save_untrained([*words, *shrunk("longvit_tiny"), *sizes], tmp_path / "longvit")
    image = folders / "valid" / "red" / "0.png"
    hub = MODEL_REGISTRY["longvit_tiny"].from_pretrained(str(tmp_path / "longvit"))
    assert list(hub.classify(image)) == ["class", "blue", "green", "red", "yellow"]
    assert hub.extract_features(image).shape == (1, 16, WIDTH)
    words = [str(pictures), "--task", "image_text", "--criterion", "image_text"]
    save_untrained([*words, *shrunk("beit3_small"), *sizes], tmp_path / "beit3")
    hub = MODEL_REGISTRY["beit3_small"].from_pretrained(str(tmp_path / "beit3"))
    assert hub.extract_features(text="a red circle").shape == (1, len(hub.encode("a red circle")), WIDTH)
    assert hub.extract_features(image, "a red circle").size(1) == 17 + len(hub.encode("a red circle"))
    assert 0 < hub.match(image, "a red circle") < 1
