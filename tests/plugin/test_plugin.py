"""How the package gets registered with fairseq, by every way in which it can be imported."""

import sys
import sysconfig
from pathlib import Path

import pytest

from tests.fairseq_cli import (
    REPOSITORY,
    USER_DIR,
    run_beside_fairseq,
    run_fairseq,
    run_program,
    run_python,
)
from torchscale_fairseq import plugin

REGISTERED = """
from fairseq.models import MODEL_REGISTRY
from fairseq.data import data_utils
ours = [model for model in MODEL_REGISTRY.values() if model.__module__.startswith("torchscale_fairseq.models")]
print("registered" if ours and hasattr(data_utils.batch_by_size, "__wrapped__") else "not registered")
"""
AS_FAIRSEQ_IMPORTS = f"""
from argparse import Namespace
from fairseq import utils
utils.import_user_module(Namespace(user_dir={str(USER_DIR)!r}))
"""


def test_importing_the_package_imports_no_fairseq() -> None:
    code = """
        import sys
        import torchscale_fairseq, torchscale_fairseq.plugin, torchscale_fairseq.checkpoints.reading
        torchscale_fairseq.EncoderConfig(vocab_size=10)
        print([name for name in sys.modules if name.startswith("fairseq")])
    """
    assert run_python(code).check().stdout.strip() == "[]"


def test_module_prints_the_user_dir() -> None:
    done = run_program(["python", "-m", "torchscale_fairseq"]).check()
    assert Path(done.stdout.strip()) == USER_DIR == Path(plugin.user_dir())


def test_fairseq_finds_the_installed_package_from_any_folder(tmp_path: Path) -> None:
    """``scripts/setup.sh`` links it where fairseq looks; a plain ``pip install`` puts it there."""
    if not (Path(sysconfig.get_path("purelib")) / "torchscale_fairseq").exists():
        pytest.skip("the package is installed elsewhere; scripts/setup.sh links it beside fairseq")
    words = ["--user-dir", "torchscale_fairseq", "--arch", "gpt_xpos_small", "--help"]
    done = run_fairseq("train", words, plugin=False, cwd=tmp_path).check()
    assert "--xpos-rel-pos" in done.stdout


def test_without_fairseq_the_error_says_how_to_install_it() -> None:
    blocked = "import sys; sys.modules['fairseq'] = None; import torchscale_fairseq.models"
    last_line = run_python(blocked).last_line
    assert last_line.startswith("ModuleNotFoundError") and "pip install" in last_line


def test_registering_leaves_the_root_logger_alone() -> None:
    """A module of fairseq sets it to DEBUG."""
    code = """
        import logging
        from torchscale_fairseq import plugin
        plugin.register()
        print(logging.root.level == logging.WARNING, logging.root.handlers)
    """
    assert run_python(code).check().stdout.strip() == "True []"


def test_user_dir_registers() -> None:
    assert "\nregistered" in "\n" + run_beside_fairseq(AS_FAIRSEQ_IMPORTS + REGISTERED, plugin=False).check().stdout


def test_importing_models_registers() -> None:
    code = "import torchscale_fairseq.models\n" + REGISTERED
    assert "\nregistered" in "\n" + run_beside_fairseq(code, plugin=False).check().stdout


def test_package_imported_before_needs_register() -> None:
    """fairseq imports nothing from a --user-dir whose package is already imported."""
    code = "import torchscale_fairseq\n" + AS_FAIRSEQ_IMPORTS + REGISTERED
    assert "\nnot registered" in "\n" + run_beside_fairseq(code, plugin=False).check().stdout
    code += "from torchscale_fairseq import plugin; plugin.register()\n" + REGISTERED
    assert "\nregistered" in run_beside_fairseq(code, plugin=False).check().stdout


def test_failed_registration_is_not_taken_for_done(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.register()
    monkeypatch.delitem(sys.modules, "torchscale_fairseq.registration")
    monkeypatch.setitem(sys.modules, "torchscale_fairseq.criterions", None)
    for _ in range(2):
        with pytest.raises(ImportError, match="criterions"):
            plugin.register()


def test_stock_program_with_a_relative_user_dir(translation_data: Path, stock_checkpoint: Path) -> None:
    """The console script itself, started in the repository."""
    generate = ["fairseq-generate", translation_data, "--user-dir", "torchscale_fairseq", "--path", stock_checkpoint]
    assert run_program([*generate, "--beam", "1"], cwd=REPOSITORY).check().stdout.count("\nH-") == 21


def test_hydra(language_data: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(f"""# @package _global_
common: {{log_format: simple}}
task: {{_name: language_modeling, data: {language_data}, tokens_per_sample: 32}}
model: {{_name: transformer_lm, decoder_layers: 1, decoder_embed_dim: 16, decoder_input_dim: 16,
  decoder_output_dim: 16, decoder_ffn_embed_dim: 32, decoder_attention_heads: 2}}
criterion: {{_name: cross_entropy}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
dataset: {{batch_size: 4, num_workers: 0}}
optimization: {{max_update: 2, lr: [0.01]}}
checkpoint: {{save_dir: {tmp_path}/checkpoints}}
""")
    arguments = ["--config-dir", tmp_path, "--config-name", "small", f"hydra.run.dir={tmp_path}/run"]
    run_fairseq("hydra_train", [*arguments, "common.bf16=true"]).check()
    assert (
        "Loaded checkpoint"
        in run_fairseq("hydra_train", [*arguments, "common.bf16=true", "optimization.max_update=3"]).check().output
    )
