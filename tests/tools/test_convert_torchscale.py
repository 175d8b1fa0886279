"""torchscale-fairseq convert from-torchscale and to-torchscale: official checkpoints in, and out again."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fairseq_cli import FEW_UPDATES, TOOL, Finished, run_fairseq, run_program, tiny_language_data
from tests.helpers import assert_close
from tests.printed import assert_printed_alike, printed
from tests.tools.in_process import run_tool
from tests.tools.official_checkpoints import KINDS, case_of, official_checkpoint, write_dictionaries
from tests.tools.same import assert_same
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.tools.convert import official_format as official

pytest.importorskip("fairseq")

from fairseq.checkpoint_utils import load_model_ensemble_and_task
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf

import torchscale_fairseq.models  # noqa: F401


def convert(*words: object) -> Finished:
    return run_tool("convert", "from-torchscale", *words)


def convert_back(*words: object) -> Finished:
    return run_tool("convert", "to-torchscale", *words)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def written(state: dict[str, Any], folder: Path, name: str = "official.pt") -> Path:
    torch.save(state, folder / name)
    return folder / name


def from_case(name: str, folder: Path, **how: Any) -> tuple[dict[str, Any], Path]:
    write_dictionaries(folder, case_of(name))
    state = official_checkpoint(case_of(name), folder, **how)
    return state, written(state, folder)


@pytest.mark.parametrize(("name", "layout"), [*((name, "cfg") for name in KINDS), ("fs_mt", "args")])
def test_converted_checkpoint_gives_golden_logits(name: str, layout: str, folder: Path) -> None:
    _, path = from_case(name, folder, layout=layout)
    out = folder / "ours.pt"
    convert(path, out).check()
    (model,), _, _ = load_model_ensemble_and_task([str(out)])
    case, model = case_of(name), model.eval()
    tokens, keep = case["in/src_tokens"], case["in/loss_keep"]
    with torch.no_grad():
        logits, _ = model(tokens, None, case["in/prev_output_tokens"]) if KINDS[name] == "mt" else model(tokens)
    assert_close(logits[keep], case["out/logits"][keep], "parity", "logits")


@pytest.mark.parametrize("layout", ["cfg", "args"])
@pytest.mark.parametrize("name", KINDS)
def test_round_trip_is_exact(name: str, layout: str, folder: Path) -> None:
    state, path = from_case(name, folder, layout=layout)
    convert(path, folder / "ours.pt").check()
    convert_back(folder / "ours.pt", folder / "back.pt").check()
    back = load_checkpoint(folder / "back.pt")
    assert list(back["model"]) == list(state["model"])
    assert_same(back, state)
    for tied, owner in case_of(name).meta["extra"].get("tied", {}).items():
        assert back["model"][tied].data_ptr() == back["model"][owner].data_ptr()


@pytest.mark.parametrize("layout", ["cfg", "args"])
@pytest.mark.parametrize("name", KINDS)
def test_return_without_the_record_keeps_parameters_and_live_options(name: str, layout: str, folder: Path) -> None:
    """As after training went on: fairseq writes no entry that it does not know."""
    state, path = from_case(name, folder, layout=layout)
    convert(path, folder / "ours.pt").check()
    ours = load_checkpoint(folder / "ours.pt")
    del ours["torchscale_official"]
    convert_back(written(ours, folder, "ours.pt"), folder / "back.pt").check()
    back = load_checkpoint(folder / "back.pt")
    constants = {"decoder.version", "decoder.embed_positions._float_tensor"}
    lacking = state["model"].keys() - back["model"].keys()
    assert lacking <= {"decoder.version"}  # of no use to anyone
    for key in state["model"].keys() - constants:
        assert_same(back["model"][key], state["model"][key], key)
    assert_same(back["last_optimizer_state"], state["last_optimizer_state"])
    there, here = model_part(back), model_part(state)
    for option in official.LIVE[f"{KINDS[name]}_base"]:
        if here.get(option) is not None:
            assert there[option] == here[option], option
    assert "torchscale_compatible" not in there


def model_part(state: dict[str, Any]) -> dict[str, Any]:
    part = state["args"] if state["args"] is not None else state["cfg"]["model"]
    return vars(part) if isinstance(part, Namespace) else part


def test_sections_are_accepted_by_stock_fairseq(folder: Path) -> None:
    state, path = from_case("fs_mlm", folder)
    done = convert(path, folder / "ours.pt").check()
    with pytest.raises(Exception, match="log_nvidia_smi"):
        OmegaConf.merge(OmegaConf.structured(FairseqConfig), {"common": state["cfg"]["common"]})
    cfg = load_checkpoint(folder / "ours.pt")["cfg"]
    merged = OmegaConf.merge(OmegaConf.structured(FairseqConfig), cfg)
    assert merged.checkpoint.save_dir == "checkpoints"
    assert cfg["task"]["_name"] == "masked_lm" and "spm_model" not in cfg["task"]
    assert cfg["criterion"] == {"_name": "cross_entropy", "sentence_avg": False}
    assert "block_wise" not in cfg["optimizer"] and cfg["optimizer"]["adam_betas"] == "(0.9, 0.98)"
    for name in (
        "common.log_nvidia_smi",
        "dataset.num_workers_valid",
        "moe_second_expert_policy",
        "optimizer.block_wise",
    ):
        assert name in done.stdout
    assert "<mask_99>" in done.stdout


def test_options_are_explicit(folder: Path) -> None:
    _, path = from_case("fs_lm", folder, max_target_positions=None, tokens_per_sample=30, rel_pos_buckets=32)
    convert(path, folder / "ours.pt").check()
    options = load_checkpoint(folder / "ours.pt")["cfg"]["model"]
    expected = {"_name": "lm_base", "torchscale_compatible": True, "subln": True, "decoder_normalize_before": True}
    expected |= {"max_target_positions": 30, "rel_pos_buckets": 0, "max_rel_pos": 0}  # one alone does nothing there
    assert {key: options[key] for key in expected} == expected
    assert "moe_freq" not in options and "decoder_output_dim" not in options


def test_masked_model_shares_its_embedding_whatever_the_option_says(folder: Path) -> None:
    _, path = from_case("fs_mlm", folder, share_encoder_input_output_embed=False)
    convert(path, folder / "ours.pt").check()
    assert load_checkpoint(folder / "ours.pt")["cfg"]["model"]["share_encoder_input_output_embed"] is True


class TestOptimizer:
    """The official modules register the output projection before the layers, ours after them."""

    @pytest.mark.parametrize("name", KINDS)
    def test_state_follows_the_parameters(self, name: str, folder: Path) -> None:
        _, path = from_case(name, folder)
        convert(path, folder / "ours.pt").check()
        state = load_checkpoint(folder / "ours.pt")
        (model,), _, _ = load_model_ensemble_and_task([str(folder / "ours.pt")])
        names = [key for key, _ in model.named_parameters()]
        heads = [key for key in state["model"] if key.startswith("classification_heads")]
        entries = state["last_optimizer_state"]["state"]
        assert len(entries) == len(names) + len(heads)
        for index, key in enumerate(names + heads):
            assert_same(entries[index]["exp_avg"], (1 - 0.9) * state["model"][key], key)

    def test_flat_state_follows_the_parameters(self, folder: Path) -> None:
        state, path = from_case("fs_lm", folder)
        flat = torch.cat([value.flatten() for value in state["model"].values()])
        state["last_optimizer_state"] = {
            "state": {0: {"step": 3, "exp_avg": flat}},
            "param_groups": [{"lr": 0.25, "params": [0]}],
            "loss_scale": 128.0,
        }
        written(state, folder)
        convert(path, folder / "ours.pt").check()
        converted = load_checkpoint(folder / "ours.pt")
        (model,), _, _ = load_model_ensemble_and_task([str(folder / "ours.pt")])
        expected = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        entry = converted["last_optimizer_state"]["state"][0]
        assert_same(entry, {"step": 3, "exp_avg": expected})
        assert not torch.equal(flat, expected)
        assert converted["last_optimizer_state"]["loss_scale"] == 128.0

    def test_unknown_layout_is_refused_unless_left_out(self, folder: Path) -> None:
        state, path = from_case("fs_lm", folder)
        state["last_optimizer_state"]["param_groups"][0]["params"] = [0, 1]
        written(state, folder)
        assert "it is of 2 parameters, and the model has" in convert(path, folder / "ours.pt").last_line
        convert(path, folder / "ours.pt", "--no-optimizer-state").check()
        assert load_checkpoint(folder / "ours.pt")["last_optimizer_state"] is None

    @pytest.mark.parametrize("name", KINDS)
    def test_order_is_the_official_one(self, name: str) -> None:
        """The vectors list the gradients in the order of the official model's parameters."""
        names = list(case_of(name).meta["extra"]["grad_norms"])
        heads = [key for key in names if key.startswith("classification_heads")]
        others = sorted(set(names) - set(heads))
        assert official.parameter_order(others + heads) == names


class TestVersions:
    """Which official version makes which norms; what the names of the parameters leave open is nothing."""

    def test_decoder_made_in_python_by_the_older_version(self, folder: Path) -> None:
        """DecoderConfig(deepnorm=True) of 0.3.0 is post-norm, whatever the example's options say."""
        _, path = self.deepnorm(folder, final_norm=False)
        done = convert(path, folder / "ours.pt").check()
        assert "made by TorchScale 0.3.0\n" in done.stdout
        options = load_checkpoint(folder / "ours.pt")["cfg"]["model"]
        assert options["deepnorm"] is True and options["decoder_normalize_before"] is False
        (model,), _, _ = load_model_ensemble_and_task([str(folder / "ours.pt")])
        assert not model.decoder.layers[0].residual.pre_norm and model.decoder.layers[0].residual.alpha > 1

    def test_decoder_made_by_the_example(self, folder: Path) -> None:
        _, path = self.deepnorm(folder, final_norm=True)
        done = convert(path, folder / "ours.pt").check()
        assert "made by TorchScale 0.3.0 or main\n" in done.stdout
        (model,), _, _ = load_model_ensemble_and_task([str(folder / "ours.pt")])
        assert model.decoder.layers[0].residual.pre_norm and model.decoder.layers[0].residual.alpha > 1

    def test_wrong_claim_is_refused(self, folder: Path) -> None:
        _, path = self.deepnorm(folder, final_norm=False)
        convert(path, folder / "ours.pt", "--torchscale-version", "0.3.0").check()
        done = convert(path, folder / "ours.pt", "--torchscale-version", "main")
        assert done.returncode == 1
        assert "is not of TorchScale main, but of 0.3.0" in done.last_line

    @pytest.mark.parametrize(
        ("options", "final_norm", "message"),
        [
            ({"subln": True, "encoder_normalize_before": False}, False, "post-norm encoder with subln"),
            ({"deepnorm": True, "encoder_normalize_before": True}, True, "pre-norm encoder with deepnorm"),
            ({"encoder_normalize_before": True}, False, "is of no version of TorchScale"),
        ],
        ids=["subln", "deepnorm", "neither"],
    )
    def test_encoders_of_the_older_version_that_have_no_counterpart(
        self, options: dict[str, Any], final_norm: bool, message: str, folder: Path
    ) -> None:
        state, _ = from_case("fs_mt", folder, **{"subln": False, **options})
        if not final_norm:
            remove(state, "encoder.layer_norm.")
        if not options.get("subln"):
            remove(state, "inner_attn_ln", "ffn_layernorm")
        done = convert(written(state, folder), folder / "ours.pt")
        assert done.returncode == 1
        assert message in done.last_line and not (folder / "ours.pt").exists()

    def deepnorm(self, folder: Path, *, final_norm: bool) -> tuple[dict[str, Any], Path]:
        state, _ = from_case("fs_lm", folder, deepnorm=True, subln=False)
        remove(state, "inner_attn_ln", "ffn_layernorm", *([] if final_norm else ["decoder.layer_norm."]))
        return state, written(state, folder)


def remove(state: dict[str, Any], *fragments: str) -> None:
    for name in [key for key in state["model"] if any(fragment in key for fragment in fragments)]:
        del state["model"][name]
    state["last_optimizer_state"] = None


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"moe_freq": 2}, "mixture-of-experts layers (moe_freq=2)"),
            (
                {"_name": "mlm_base", "segment_length": "[8,16]"},
                "LongNet's dilated attention (segment_length='[8,16]')",
            ),
            ({"adaptive_softmax_cutoff": "10,20"}, "an adaptive softmax (adaptive_softmax_cutoff='10,20')"),
            ({"surprise": 1}, "an option surprise (1) that TorchScale's lm_base lacks"),
            ({"_name": "retnet_base"}, "that TorchScale's retnet_base lacks"),
            ({"_name": "transformer_lm"}, "is of --arch transformer_lm, not of TorchScale's lm, mt, mlm or retnet"),
            ({"activation_fn": "gelu_fast"}, "--activation-fn ('gelu_fast') must be one of"),
            ({"decoder_layers": 3}, "lacks the parameter decoder.layers.2."),
            ({"decoder_ffn_embed_dim": 64}, "decoder.layers.0.ffn.fc1.weight of shape (32, 24) for (64, 24)"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_option(self, change: dict[str, Any], message: str, folder: Path) -> None:
        state, _ = from_case("fs_lm", folder)
        state["cfg"]["model"] |= change
        self.refuses(message, written(state, folder))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "decoder.layers.1.moe_layer.gate.wg.weight",
                "mixture-of-experts layers (decoder.layers.1.moe_layer.gate.",
            ),
            ("decoder.surprise.weight", "has a parameter decoder.surprise.weight, which the model lacks"),
            ("classification_heads.qa.start.weight", "has a parameter classification_heads.qa.start.weight"),
        ],
    )
    def test_parameter(self, name: str, message: str, folder: Path) -> None:
        state, _ = from_case("fs_lm", folder)
        state["model"][name] = torch.zeros(3)
        self.refuses(message, written(state, folder))

    def test_ours_already(self, folder: Path) -> None:
        _, path = from_case("fs_mt", folder)
        convert(path, folder / "ours.pt").check()
        self.refuses("is a checkpoint of torchscale_fairseq already (--arch mt_base)", folder / "ours.pt")

    def test_truncated(self, folder: Path) -> None:
        _, path = from_case("fs_lm", folder)
        path.write_bytes(path.read_bytes()[:2000])
        self.refuses("is truncated or not a checkpoint", path)

    def test_weights_alone(self, folder: Path) -> None:
        self.refuses("is not a checkpoint of fairseq", written({"weight": torch.zeros(1)}, folder))
        self.refuses("it has neither args nor cfg.model", written({"model": {"a": torch.zeros(1)}}, folder))

    def test_missing_file(self, folder: Path) -> None:
        self.refuses("No such file", folder / "nothing.pt")

    def refuses(self, message: str, path: Path) -> None:
        out = path.with_name("refused.pt")
        done = convert(path, out)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert message in done.last_line
        assert not out.exists()


class TestRefusalsOnReturn:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"torchscale_compatible": False}, "was trained without --torchscale-compatible"),
            ({"layernorm_eps": 1e-6}, "has layernorm_eps=1e-06, an option that TorchScale's lm_base lacks"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_option(self, change: dict[str, Any], message: str, folder: Path) -> None:
        _, path = from_case("fs_lm", folder)
        convert(path, folder / "ours.pt").check()
        state = load_checkpoint(folder / "ours.pt")
        state["cfg"]["model"] |= change
        done = convert_back(written(state, folder, "changed.pt"), folder / "back.pt")
        assert done.returncode == 1
        assert message in done.last_line

    def test_official_already(self, folder: Path) -> None:
        _, path = from_case("fs_lm", folder)
        done = convert_back(path, folder / "back.pt")
        assert "is not a checkpoint of torchscale_fairseq, but of --arch lm_base" in done.last_line

    def test_changed_options_are_not_overwritten_by_the_record(self, folder: Path) -> None:
        _, path = from_case("fs_lm", folder)
        convert(path, folder / "ours.pt").check()
        state = load_checkpoint(folder / "ours.pt")
        state["cfg"]["model"]["dropout"] = 0.3
        convert_back(written(state, folder, "changed.pt"), folder / "back.pt").check()
        back = load_checkpoint(folder / "back.pt")
        assert back["cfg"]["model"]["dropout"] == 0.3
        assert "torchscale_official" not in back


def test_constants_of_xpos_are_made_again(folder: Path) -> None:
    state, _ = from_case("fs_lm", folder, xpos_rel_pos=True)
    scale = (torch.arange(0, 6, 2) + 0.4 * 6) / (1.4 * 6)
    for layer in (0, 1):
        state["model"][f"decoder.layers.{layer}.self_attn.xpos.scale"] = scale
    convert(written(state, folder), folder / "ours.pt").check()
    ours = load_checkpoint(folder / "ours.pt")
    assert not [name for name in ours["model"] if "xpos" in name]
    del ours["torchscale_official"]
    convert_back(written(ours, folder, "ours.pt"), folder / "back.pt").check()
    back = load_checkpoint(folder / "back.pt")
    assert_same(dict(back["model"]), dict(state["model"]))


@pytest.mark.slow
def test_program(folder: Path) -> None:
    _, path = from_case("fs_lm", folder)
    done = run_program([*TOOL, "convert", "from-torchscale", path, folder / "ours.pt"]).check()
    assert f"wrote {folder / 'ours.pt'}: {len(load_checkpoint(path)['model'])} tensors" in done.stdout
    assert not list(folder.glob(".*.part"))


@pytest.mark.slow
def test_training_resumes_after_a_round_trip(folder: Path) -> None:
    """On the official side the optimizer's entries stand in another order; back here, the losses are the same."""
    data = tiny_language_data(folder)
    sizes = (
        "--decoder-layers 1 --decoder-embed-dim 16 --decoder-ffn-embed-dim 32 --decoder-attention-heads 2 --dropout 0"
    )
    flags = [data, "--task", "language_modeling", "--arch", "lm_base", "--tokens-per-sample", "32", *sizes.split()]
    run_fairseq("train", [*flags, *FEW_UPDATES, "--save-dir", folder / "run"]).check()
    last = folder / "run/checkpoint_last.pt"
    convert_back(last, folder / "official.pt").check()
    convert(folder / "official.pt", folder / "back.pt").check()
    there, back = load_checkpoint(folder / "official.pt"), load_checkpoint(folder / "back.pt")
    assert list(there["last_optimizer_state"]["state"][1]["exp_avg"].shape) == list(
        there["model"]["decoder.output_projection.weight"].shape
    )
    assert_same(back["last_optimizer_state"], load_checkpoint(last)["last_optimizer_state"])
    more = [*flags, *FEW_UPDATES, "--save-dir", folder / "more", "--max-update", "8", "--no-save"]
    there_losses, back_losses = (
        printed(run_fairseq("train", [*more, "--restore-file", start]).check().output, "loss", "train_inner")
        for start in (last, folder / "back.pt")
    )
    assert_printed_alike(back_losses, there_losses, "losses")
    assert len(there_losses) == 4
