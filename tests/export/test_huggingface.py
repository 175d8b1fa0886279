"""export hf and import hf: transformers computes, decodes and trains as our models do."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.helpers import pair

pytest.importorskip("fairseq")
pytest.importorskip("transformers", minversion="5.24")

import transformers
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator

from tests.export.exported import ALL, CAUSAL, TRANSLATION, Exported, exported, packed, padded_tokens, write_words
from tests.helpers import assert_close
from tests.tools.in_process import run_tool
from tests.tools.same import assert_same
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.core.architectures.longvit import LongViTClassifier

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1, "do_sample": False},
    "beam": {"num_beams": 4, "do_sample": False, "early_stopping": True},
    "sampling": {"num_beams": 1, "do_sample": True},
}


def logits(name: str, made: Exported, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the exported model and of fairseq's, where there is no padding."""
    tokens, mask = padded_tokens()
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if name in TRANSLATION:
            target = torch.cat((torch.full((6, 1), 2), tokens[:, -4:]), 1)
            output = model(tokens, attention_mask=mask, decoder_input_ids=target)
            return output.logits, made.model(tokens, None, target)[0]
        if name == "longvit":
            assert isinstance(made.model, LongViTClassifier)
            return model(images).logits, LongViTClassifier.forward(made.model, images)
        if name == "beit3":
            tokens, mask = tokens.flip(1), mask.flip(1)
            output = model(input_ids=tokens, pixel_values=images, attention_mask=mask)
            return output.last_hidden_state, cast(Any, made.model).extract_features(tokens, images)
        return model(tokens, attention_mask=mask).logits[mask.bool()], made.model(tokens)[0][mask.bool()]


@pytest.mark.parametrize("name", ALL)
def test_logits_are_ours(name: str, tmp_path: Path) -> None:
    made = exported(name, tmp_path)
    assert_close(*logits(name, made, made.load()), "float32")


def test_packed_weights_stay_packed(tmp_path: Path) -> None:
    made = packed(tmp_path)
    model = made.load()
    assert sum(tensor.dtype == torch.uint8 for tensor in model.state_dict().values()) > 0
    assert_close(*logits("bitnet", made, model), "float32")


@pytest.mark.parametrize("name", ["gpt", "bert", "experts", "longvit"])
def test_way_back_is_exact(name: str, tmp_path: Path) -> None:
    made = exported(name, tmp_path, shard_bytes=5_000)
    assert name == "longvit" or (made.folder / "model.safetensors.index.json").exists()
    run_tool("import", "hf", made.folder, tmp_path / "back.pt").check()
    before, after = load_checkpoint(made.checkpoint), load_checkpoint(tmp_path / "back.pt")
    assert list(after["model"]) == list(before["model"])
    for entry in ("model", "cfg", "task_state"):
        assert_same(after[entry], before[entry], entry)


def test_model_that_transformers_saved_loads(tmp_path: Path) -> None:
    made = exported("experts", tmp_path)
    model = made.load()
    model.save_pretrained(tmp_path / "saved")
    assert_same(dict(made.load(tmp_path / "saved").state_dict()), dict(model.state_dict()))
    shutil.copy(made.folder / "fairseq.json", tmp_path / "saved")
    run_tool("import", "hf", tmp_path / "saved", tmp_path / "back.pt").check()
    assert_same(load_checkpoint(tmp_path / "back.pt")["model"], load_checkpoint(made.checkpoint)["model"])


def test_model_is_loaded_in_half_precision(tmp_path: Path) -> None:
    made = exported("gpt", tmp_path)
    assert_close(*pair(x.float() for x in logits("gpt", made, made.load(dtype=torch.bfloat16))), "bfloat16")


def test_new_model_is_initialised_by_the_core(tmp_path: Path) -> None:
    made = exported("bert", tmp_path)
    fresh = made.auto.from_config(made.load().config, trust_remote_code=True)
    projections = fresh.core.layers[0].self_attn
    kept = dict(made.model.named_parameters())["encoder.layers.0.self_attn.q_proj.weight"]
    assert projections.q_proj.weight.std().item() == pytest.approx(kept.std().item(), rel=0.2)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", [*CAUSAL, *TRANSLATION])
def test_cache_changes_nothing(name: str, search: str, tmp_path: Path) -> None:
    model = exported(name, tmp_path).load()
    tokens, mask = padded_tokens()
    found = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        how = SEARCHES[search]
        found.append(model.generate(tokens, attention_mask=mask, use_cache=use_cache, max_new_tokens=8, **how))
    assert_same(*found)


@pytest.mark.parametrize("name", [*CAUSAL, *TRANSLATION])
def test_padding_changes_nothing(name: str, tmp_path: Path) -> None:
    model = exported(name, tmp_path).load()
    tokens, mask = padded_tokens()
    how = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1}
    together = model.generate(tokens, attention_mask=mask, **how)
    for row in range(len(tokens)):
        alone = tokens[row][mask[row].bool()][None]
        expected = model.generate(alone, attention_mask=torch.ones_like(alone), **how)[0]
        prompt = 0 if name in TRANSLATION else tokens.size(1)
        expected = expected if name in TRANSLATION else expected[alone.size(1) :]
        assert_same(together[row, prompt:][: len(expected)], expected)


@pytest.mark.parametrize("name", TRANSLATION)
def test_best_translation_is_that_of_fairseq(name: str, tmp_path: Path) -> None:
    made = exported(name, tmp_path)
    tokens, mask = padded_tokens(rows=20)
    dictionary = Dictionary.load(str(write_words(tmp_path / "words") / "dict.txt"))
    search = SequenceGenerator([made.model], dictionary, beam_size=5, max_len_a=0, max_len_b=30)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": mask.sum(1)}}
    expected = [beams[0] for beams in search.generate([made.model], sample)]
    how = {"output_scores": True, "return_dict_in_generate": True}
    found = made.load().generate(tokens, attention_mask=mask, max_new_tokens=31, **how)
    lengths = {len(best["tokens"]) for best in expected}
    assert len(lengths) > 1, "all end at the limit, so that the test shows little"
    for row, best in enumerate(expected):
        assert_same(found.sequences[row, 1 : 1 + len(best["tokens"])], best["tokens"], f"row {row}")
        assert_close(found.sequences_scores[row], best["score"], "float32")


def test_defaults_of_generation_are_those_of_fairseq(tmp_path: Path) -> None:
    defaults = exported("mt", tmp_path).load().generation_config
    assert (defaults.num_beams, defaults.early_stopping, defaults.length_penalty) == (5, True, 1.0)
    assert defaults.max_new_tokens == 32, "the model has 32 positions"


@pytest.mark.parametrize("name", ["gpt", "retnet", "bert", "experts"])
def test_trainer_trains(name: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    made = exported(name, tmp_path)
    row = {"input_ids": [4, 5, 6, 7, 2], "labels": [7, 8, 2] if name == "experts" else [4, 5, 6, 7, 2]}
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=6,
        save_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model=made.load(), args=settings, train_dataset=[row] * 24)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    saved = made.load(tmp_path / "run/checkpoint-6")
    assert_same(dict(saved.state_dict()), dict(trainer.model.state_dict()))


def test_pipelines(tmp_path: Path) -> None:
    causal, masked = exported("gpt", tmp_path), exported("bert", tmp_path)
    generate = transformers.pipeline("text-generation", model=str(causal.folder), trust_remote_code=True)
    texts = generate(["w1 w2", "w3"], max_new_tokens=4, do_sample=False)
    assert [text[0]["generated_text"][:2] for text in texts] == ["w1", "w3"]
    # the families' dictionary has no <mask>: give the last word its name
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = masked.folder / file
        path.write_text(path.read_text().replace('"w19"', '"<mask>"'))
    settings = json.loads((masked.folder / "tokenizer_config.json").read_text())
    settings |= {"mask_token": "<mask>", "split_special_tokens": False}
    (masked.folder / "tokenizer_config.json").write_text(json.dumps(settings))
    fill = transformers.pipeline("fill-mask", model=str(masked.folder), trust_remote_code=True)
    assert len(fill("w1 <mask> w3", top_k=2)) == 2


def test_dictionary_of_another_size_is_refused(tmp_path: Path) -> None:
    checkpoint = exported("gpt", tmp_path).checkpoint
    (tmp_path / "words/dict.txt").write_text("w1 1\n")
    done = run_tool("export", "hf", checkpoint, tmp_path / "other", "--data", tmp_path / "words")
    assert done.returncode == 1
    assert "dict.txt has 5 symbols and the checkpoint's target embedding 24 rows" in done.last_line
    assert not (tmp_path / "other").exists()
