"""torchscale-fairseq convert to-safetensors, ``load_pretrained`` and convert from-safetensors: a folder that the core
alone loads, and back."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fairseq_cli import Finished, run_python
from tests.helpers import assert_close
from tests.tools.in_process import run_tool
from tests.tools.official_checkpoints import KINDS, case_of, official_checkpoint, write_dictionaries
from tests.tools.same import assert_same
from torchscale_fairseq import DecoderConfig, EncoderDecoder, load_pretrained
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.core.architectures.decoder import Decoder
from torchscale_fairseq.core.layers.embedding import TextEmbedding
from torchscale_fairseq.core.ops.positions import absolute_positions
from torchscale_fairseq.core.saving import write_folder

pytest.importorskip("safetensors")
pytest.importorskip("fairseq")

from fairseq.checkpoint_utils import load_model_ensemble_and_task


def convert(direction: str, *words: object) -> Finished:
    return run_tool("convert", f"{direction}-safetensors", *words)


def checkpoint_of(name: str, folder: Path, **how: Any) -> Path:
    """The case as a checkpoint of ours."""
    write_dictionaries(folder, case_of(name))
    torch.save(official_checkpoint(case_of(name), folder, **how), folder / "official.pt")
    run_tool("convert", "from-torchscale", folder / "official.pt", folder / "ours.pt").check()
    return folder / "ours.pt"


def logits(name: str, model: Any) -> torch.Tensor:
    """The case's logits from a model of the core."""
    case, padding = case_of(name), TextEmbedding(1, 1).padding_idx or 1
    mask = case["in/src_tokens"].eq(padding)
    with torch.no_grad():
        if KINDS[name] in ("lm", "retnet"):
            return model(case["in/src_tokens"], self_attn_padding_mask=mask)[0]
        encoded = (model.encoder if KINDS[name] == "mt" else model)(
            case["in/src_tokens"], mask, positions=absolute_positions(mask)
        )
        if KINDS[name] == "mlm":
            return encoded["encoder_out"]
        target = case["in/prev_output_tokens"]
        return model.decoder(target, target.eq(padding), encoder_out=encoded)[0]


@pytest.mark.parametrize("name", KINDS)
def test_core_gives_golden_logits(name: str, tmp_path: Path) -> None:
    convert("to", checkpoint_of(name, tmp_path), tmp_path / "folder").check()
    case, keep = case_of(name), case_of(name)["in/loss_keep"]
    model = load_pretrained(tmp_path / "folder")
    assert not model.training
    assert_close(logits(name, model)[keep], case["out/logits"][keep], "parity", "logits")


@pytest.mark.parametrize(("name", "layout"), [*((name, "cfg") for name in KINDS), ("fs_mt", "args")])
def test_round_trip_is_exact(name: str, layout: str, tmp_path: Path) -> None:
    path = checkpoint_of(name, tmp_path, layout=layout)
    convert("to", path, tmp_path / "folder").check()
    convert("from", tmp_path / "folder", tmp_path / "back.pt").check()
    state, back = load_checkpoint(path), load_checkpoint(tmp_path / "back.pt")
    assert list(back["model"]) == list(state["model"])
    for entry in ("model", "cfg", "args", "optimizer_history"):
        assert_same(back[entry], state[entry], entry)
    for tied, owner in case_of(name).meta["extra"].get("tied", {}).items():
        assert back["model"][tied].data_ptr() == back["model"][owner].data_ptr()
    (model,), _, _ = load_model_ensemble_and_task([str(tmp_path / "back.pt")])
    assert_same(dict(model.state_dict()), {name: state["model"][name] for name in model.state_dict()})


def test_tied_parameters_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    convert("to", checkpoint_of("fs_mt", tmp_path), tmp_path / "folder").check()
    from safetensors import safe_open

    with safe_open(tmp_path / "folder/model.safetensors", "pt") as file:
        assert [name for name in file.keys() if "embed_tokens" in name] == ["encoder.embed_tokens.weight"]  # noqa: SIM118
    model = load_pretrained(tmp_path / "folder")
    assert isinstance(model, EncoderDecoder)
    shared = model.encoder.embed_tokens.weight
    assert model.decoder.embed_tokens.weight is shared and model.decoder.output_projection.weight is shared


def test_vocabularies_of_both_sides_may_differ(tmp_path: Path) -> None:
    path = checkpoint_of("fs_mt", tmp_path)
    state = load_checkpoint(path)
    state["cfg"]["model"]["share_all_embeddings"] = False
    state["model"]["encoder.embed_tokens.weight"] = torch.randn(40, 24)
    torch.save(state, path)
    convert("to", path, tmp_path / "folder").check()
    model: Any = load_pretrained(tmp_path / "folder")
    assert_same(model.encoder.embed_tokens.weight.detach(), state["model"]["encoder.embed_tokens.weight"])
    assert model.decoder.embed_tokens.weight.shape == (32, 24)


def test_half_precision_stays(tmp_path: Path) -> None:
    path = checkpoint_of("fs_lm", tmp_path)
    state = load_checkpoint(path)
    state["model"] = {name: value.half() for name, value in state["model"].items()}
    torch.save(state, path)
    convert("to", path, tmp_path / "folder").check()
    model = load_pretrained(tmp_path / "folder")
    assert_same(dict(model.state_dict()), {k.removeprefix("decoder."): v for k, v in state["model"].items()})


def test_classification_heads_stand_in_their_own_file(tmp_path: Path) -> None:
    done = convert("to", checkpoint_of("fs_mlm", tmp_path), tmp_path / "folder").check()
    assert "and 4 of heads in heads.safetensors" in done.stdout
    names = {"heads.safetensors", "config.json", "fairseq.json", "model.safetensors"}
    assert {path.name for path in (tmp_path / "folder").iterdir()} == names
    assert len({path.stat().st_mode for path in (tmp_path / "folder").iterdir()}) == 1
    assert not [name for name in load_pretrained(tmp_path / "folder").state_dict() if "classification" in name]


def test_config_says_all_options(tmp_path: Path) -> None:
    convert("to", checkpoint_of("fs_lm", tmp_path), tmp_path / "folder").check()
    content = json.loads((tmp_path / "folder/config.json").read_text())
    assert content["config"] == "DecoderConfig"
    config = DecoderConfig(**content["options"])
    assert config.vocab_size == 32 and config.torchscale_compatible and config.decoder_learned_pos
    assert content["options"].keys() == set(DecoderConfig.__dataclass_fields__)


def test_core_loads_where_fairseq_is_missing(tmp_path: Path) -> None:
    convert("to", checkpoint_of("fs_lm", tmp_path), tmp_path / "folder").check()
    done = run_python(
        f"""
        import sys
        sys.modules["fairseq"] = None
        from torchscale_fairseq import load_pretrained
        print(type(load_pretrained({str(tmp_path / "folder")!r})).__name__)
        """
    )
    assert done.check().stdout.split() == ["Decoder"]


def test_model_of_the_core_itself(tmp_path: Path) -> None:
    """Not only TorchScale's: with paper defaults, the embeddings and positions are the config's own."""
    config = DecoderConfig(
        vocab_size=32, decoder_embed_dim=24, decoder_ffn_embed_dim=32, decoder_attention_heads=4, decoder_layers=1
    )
    model = Decoder(config).eval()
    write_folder(tmp_path, config, model.state_dict())
    tokens = torch.arange(4, 12)[None]
    with torch.no_grad():
        assert_same(load_pretrained(tmp_path)(tokens)[0], model(tokens)[0])


class TestErrors:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        convert("to", checkpoint_of("fs_lm", tmp_path), tmp_path / "folder").check()
        return tmp_path / "folder"

    def test_files_missing(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(
            FileNotFoundError, match=r"model.safetensors does not exist; torchscale-fairseq convert to-safetensors"
        ):
            load_pretrained(folder)
        with pytest.raises(FileNotFoundError, match=r"config.json does not exist"):
            load_pretrained(folder / "nowhere")

    def test_truncated(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match="is truncated or no safetensors file"):
            load_pretrained(folder)
        done = convert("from", folder, folder / "back.pt")
        assert done.returncode == 1 and "is truncated" in done.last_line

    def test_config_of_another_model(self, folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        content["options"]["decoder_layers"] = 3
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"does not fit config.json.*\n?.*decoder|layers\.2"):
            load_pretrained(folder)
        path.write_text('{"model_type": "gpt2"}')
        with pytest.raises(ValueError, match="is not the config of a model"):
            load_pretrained(folder)

    def test_package_missing(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "safetensors", None)
        with pytest.raises(ModuleNotFoundError, match="pip install safetensors"):
            load_pretrained(folder)

    def test_folder_exists(self, folder: Path) -> None:
        done = convert("to", folder.parent / "ours.pt", folder)
        assert done.returncode == 1
        assert done.last_line.endswith(f"convert to-safetensors: {folder} exists already; name a new folder")

    def test_folder_and_checkpoint_mixed_up(self, folder: Path) -> None:
        done = convert("to", folder, folder.parent / "other")
        assert done.last_line.endswith(
            "is a folder; name a checkpoint, or make one of the folder with from-safetensors"
        )
        done = convert("from", folder.parent / "ours.pt", folder.parent / "back.pt")
        assert done.last_line.endswith("is a file; from-safetensors takes the folder that to-safetensors writes")

    def test_official_checkpoint(self, folder: Path) -> None:
        done = convert("to", folder.parent / "official.pt", folder.parent / "other")
        assert done.returncode == 1
        assert "is of --arch lm_base, not of torchscale_fairseq; if TorchScale made it" in done.last_line
        assert not (folder.parent / "other").exists()

    def test_parameter_that_the_model_lacks(self, folder: Path) -> None:
        state = load_checkpoint(folder.parent / "ours.pt")
        state["model"]["decoder.surprise"] = torch.zeros(1)
        torch.save(state, folder.parent / "changed.pt")
        done = convert("to", folder.parent / "changed.pt", folder.parent / "other")
        assert "has a parameter decoder.surprise, which the model lacks" in done.last_line

    def test_configuration_that_json_lacks(self, folder: Path) -> None:
        state = load_checkpoint(folder.parent / "ours.pt")
        state["cfg"]["task"]["shape"] = [Namespace(sizes=(1, 2))]
        torch.save(state, folder.parent / "changed.pt")
        done = convert("to", folder.parent / "changed.pt", folder.parent / "other")
        assert "cfg.task.shape[0].sizes is of type tuple, which JSON lacks" in done.last_line

    def test_files_of_different_models(self, folder: Path) -> None:
        path = folder / "fairseq.json"
        description = json.loads(path.read_text())
        description["names"].append("decoder.surprise")
        path.write_text(json.dumps(description))
        done = convert("from", folder, folder / "back.pt")
        assert "decoder.surprise is only in fairseq.json; the files do not belong together" in done.last_line
        path.unlink()
        assert "was not made of a checkpoint of fairseq" in convert("from", folder, folder / "back.pt").last_line
