"""Translation models that CTranslate2 computes as fairseq does."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ctranslate2")
pytest.importorskip("fairseq")

import ctranslate2
from fairseq.sequence_generator import SequenceGenerator

from tests.export.exported import END, write_words
from tests.helpers import assert_close
from tests.tools.families import Family, write_checkpoint
from tests.tools.in_process import run_tool
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.export.ctranslate2.writing import export
from torchscale_fairseq.export.dictionaries import Dictionaries

MODELS = {
    "deepnorm": Family("mt_deepnorm_small", "translation", {"encoder_layers": 2, "decoder_layers": 3}),
    "swiglu": Family("mt_swiglu_small", "translation", {"encoder_layers": 2}),
    "post_norm": Family(
        "mt_base", "translation", {"encoder_normalize_before": False, "decoder_normalize_before": False}
    ),
    "learned": Family("mt_deepnorm_small", "translation", {"encoder_learned_pos": True, "layernorm_embedding": True}),
    "no_positions": Family("mt_deepnorm_small", "translation", {"no_token_positional_embeddings": True}),
    "relative": Family("mt_deepnorm_small", "translation", {"rel_pos_buckets": 8, "max_rel_pos": 12}),
}
SENTENCES = [[5, 9, 7, 7, 20, 11, 6], [8, 4], [12, 13, 5, 5, 9, 17, 22, 21, 4, 4, 10, 11, 19, 6]]


@dataclasses.dataclass(frozen=True)
class Translation:
    """A tiny model in fairseq and in CTranslate2."""

    model: Any
    symbols: list[str]
    translator: Any

    def words(self, numbers: list[int]) -> list[str]:
        return [self.symbols[number] for number in numbers]


@pytest.fixture(scope="module", params=MODELS)
def translation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Translation:
    folder = tmp_path_factory.mktemp(request.param)
    model = write_checkpoint(MODELS[request.param], folder / "model.pt")
    with torch.no_grad():
        for value in model.parameters():  # norms and biases are as after training
            if value.dim() == 1:
                value.add_(torch.randn_like(value), alpha=0.3)
        output = model.decoder.output_projection.weight
        logits, _ = model(torch.tensor([[5, 9, 2]]), torch.tensor([3]), torch.tensor([[2, *SENTENCES[2]]]))
        output[END] = 1.03 * output[logits[0].argmax(-1).mode().values]  # translations end by themselves
    state = torch.load(folder / "model.pt")
    state["model"] = model.state_dict()
    torch.save(state, folder / "model.pt")
    dictionaries = Dictionaries(write_words(folder / "words"))
    export(folder / "model.pt", folder / "out", dictionaries)
    symbols = dictionaries.symbols({}, "target", len(model.decoder.embed_tokens.weight))
    return Translation(model, symbols, ctranslate2.Translator(str(folder / "out"), intra_threads=1))


def test_scores_of_each_token(translation: Translation) -> None:
    """Of given translations, their ends included."""
    sources, targets = SENTENCES, [*SENTENCES[1:], SENTENCES[0]]
    found = translation.translator.score_batch([*map(translation.words, sources)], [*map(translation.words, targets)])
    for source, target, scores in zip(sources, targets, found, strict=True):
        tokens, before = torch.tensor([[*source, 2]]), torch.tensor([[2, *target]])
        with torch.no_grad():
            logits, _ = translation.model(tokens, torch.tensor([len(source) + 1]), before)
        expected = logits[0].log_softmax(-1)[range(len(target) + 1), [*target, 2]]
        assert_close(torch.tensor(scores.log_probs), expected, "float32")


def test_best_translations_of_beam_search(translation: Translation) -> None:
    """And their scores per token, the end counted. The translation may be empty: where it may not, CTranslate2 divides
    the first step's probability of the end among the other symbols, and fairseq does not."""
    dictionary = translation.model.decoder.dictionary
    generator = SequenceGenerator([translation.model], dictionary, beam_size=4, max_len_b=30, min_len=0)
    found = translation.translator.translate_batch(
        [*map(translation.words, SENTENCES)],
        beam_size=4,
        min_decoding_length=0,
        max_decoding_length=30,
        return_scores=True,
    )
    compared = 0
    for source, result in zip(SENTENCES, found, strict=True):
        tokens = torch.tensor([[*source, 2]])
        sample = {"net_input": {"src_tokens": tokens, "src_lengths": torch.tensor([len(source) + 1])}}
        (best, *_), *_ = generator.generate([translation.model], sample)
        if len(best["tokens"]) <= 30:  # it ended by itself: fairseq ends it at the longest length, CTranslate2 does not
            assert result.hypotheses[0] == translation.words(best["tokens"].tolist()[:-1])
            assert math.isclose(result.scores[0], best["score"], rel_tol=1e-4)
            compared += 1
    assert compared


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        (Family("mt_magneto_small", "translation"), r"no second norm within a sublayer \(SubLN\); train mt_deepnorm"),
        (Family("mt_xmoe_small", "translation"), r"no experts \(--moe-freq\)"),
        (Family("mt_retnet_small", "translation"), "no retention"),
        (Family("mt_deepnorm_small", "translation", {"bitnet": "b1.58"}), r"no BitNet layers \(--bitnet\)"),
        (Family("mt_deepnorm_small", "translation", {"xpos_rel_pos": True}), r"no xPos \(--xpos-rel-pos\)"),
        (
            Family("gpt_deepnorm_small", "language_modeling"),
            r"takes translation models \(mt_\*\); torchscale-fairseq export hf takes",
        ),
    ],
    ids=lambda value: value.arch if isinstance(value, Family) else "",
)
def test_models_that_it_lacks_layers_for_are_refused(family: Family, reason: str, tmp_path: Path) -> None:
    write_checkpoint(family, tmp_path / "model.pt")
    with pytest.raises(InputError, match=reason):
        export(tmp_path / "model.pt", tmp_path / "out", Dictionaries(write_words(tmp_path / "words")))
    assert not (tmp_path / "out").exists()


def test_command_quantizes(tmp_path: Path) -> None:
    write_checkpoint(MODELS["deepnorm"], tmp_path / "model.pt")
    data = write_words(tmp_path / "words")
    arguments = [tmp_path / "model.pt", tmp_path / "out", "--data", data, "--quantization", "int8"]
    assert "24 source and 24 target symbols, weights in int8" in run_tool("export", "ctranslate2", *arguments).stdout
    translator = ctranslate2.Translator(str(tmp_path / "out"))
    assert translator.compute_type == "int8_float32"
    assert translator.translate_batch([["w1", "w2"]], max_decoding_length=9)[0].hypotheses
