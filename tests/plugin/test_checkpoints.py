"""Reading checkpoints: safely, and with plain words where one cannot be used."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fairseq_cli import (
    FEW_UPDATES,
    REPOSITORY,
    TINY_LANGUAGE_MODEL,
    TINY_TRANSFORMER,
    run_beside_fairseq,
    run_fairseq,
)
from torchscale_fairseq.checkpoints.reading import CheckpointError, load_checkpoint

CONTENTS = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "cut-at-the-start": lambda whole: whole[:1000],
    "empty": lambda whole: b"",
    "text": lambda whole: b"<html>404</html>\n",
}


class Malicious:
    """Unpickled without restrictions, it writes a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.fixture(params=CONTENTS)
def broken(request: pytest.FixtureRequest, stock_checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint_last.pt"
    path.write_bytes(CONTENTS[request.param](stock_checkpoint.read_bytes()))
    return path


def test_truncated_file_is_named(broken: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{broken} is truncated or not a checkpoint"):
        load_checkpoint(broken)


def test_training_names_the_truncated_file(broken: Path, translation_data: Path) -> None:
    arguments = [translation_data, *TINY_TRANSFORMER, *FEW_UPDATES, "--save-dir", broken.parent]
    done = run_fairseq("train", arguments)
    assert done.returncode != 0
    assert f"{broken} is truncated or not a checkpoint" in done.last_line
    assert not list(broken.parent.glob("checkpoint1*.pt"))


def test_generation_names_the_truncated_file(stock_checkpoint: Path, translation_data: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(stock_checkpoint.read_bytes()[:5000])
    assert f"{cut} is truncated" in run_fairseq("generate", [translation_data, "--path", cut]).last_line
    stock = run_fairseq("generate", [translation_data, "--path", cut], plugin=False)
    assert str(cut) not in stock.last_line


def test_weights_alone_are_no_checkpoint(tmp_path: Path, translation_data: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"encoder.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="is not a checkpoint of fairseq"):
        load_checkpoint(path)
    last_line = run_fairseq("generate", [translation_data, "--path", path]).last_line
    assert f"{path} is not a checkpoint of fairseq" in last_line


def test_missing_file_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        load_checkpoint(tmp_path / "missing.pt")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, translation_data: Path) -> None:
    path, made = tmp_path / "malicious.pt", tmp_path / "made"
    torch.save({"model": {}, "cfg": Malicious(str(made))}, path)
    with pytest.raises(CheckpointError, match=r"holds an object of type \S*mkdir, which is not among the types"):
        load_checkpoint(path)
    assert "mkdir, which is not among the types loaded safely" in (
        run_fairseq("generate", [translation_data, "--path", path]).last_line
    )
    assert not made.exists()


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {}, "array": np.array([{}], dtype=object)}, tmp_path / "objects.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "objects.pt")


def test_stock_types_survive(tmp_path: Path) -> None:
    state = {
        "model": {"weight": torch.arange(3)},
        "args": argparse.Namespace(arch="transformer"),
        "best": np.float64(1.5),
        "counts": np.array([1, 2]),
    }
    torch.save(state, tmp_path / "checkpoint.pt")
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded["args"].arch == "transformer" and loaded["best"] == 1.5 and loaded["counts"].tolist() == [1, 2]


@pytest.mark.parametrize("registered", [True, False])
def test_loading_leaves_the_list_of_safe_types_as_it_was(stock_checkpoint: Path, registered: bool) -> None:
    code = f"""
        import argparse, torch
        from torchscale_fairseq.checkpoints.reading import load_checkpoint
        before = torch.serialization.get_safe_globals()
        load_checkpoint({str(stock_checkpoint)!r})
        assert set(torch.serialization.get_safe_globals()) == set(before)
        assert (argparse.Namespace in before) is {registered}
    """
    run_beside_fairseq(code, plugin=registered).check()


def test_loading_needs_no_fairseq(stock_checkpoint: Path) -> None:
    code = f"""import sys
sys.modules["fairseq"] = None
from torchscale_fairseq.checkpoints.reading import load_checkpoint
print(load_checkpoint({str(stock_checkpoint)!r})["cfg"]["model"].arch)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "transformer"


def test_checkpoint_of_another_architecture(translation_data: Path, language_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [translation_data, *TINY_TRANSFORMER, *FEW_UPDATES, "--save-dir", tmp_path]
    done = run_fairseq("train", [*arguments, "--restore-file", language_checkpoint])
    expected = (
        f"checkpoint {language_checkpoint} was trained with --arch transformer_lm; this run builds --arch transformer"
    )
    assert expected in done.last_line
    assert "parameters are only in this model, such as encoder." in done.last_line


def test_checkpoint_of_another_width(language_data: Path, language_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [language_data, *TINY_LANGUAGE_MODEL, *FEW_UPDATES, "--save-dir", tmp_path]
    done = run_fairseq("train", [*arguments, "--restore-file", language_checkpoint, "--decoder-ffn-embed-dim", "64"])
    assert "this run builds --arch transformer_lm, with other options or another dictionary" in done.last_line
    assert "decoder.layers.0.fc1.weight, (32, 16) in the checkpoint and (64, 16) here" in done.last_line


@pytest.mark.parametrize(("plugin", "left"), [(False, "ne"), (True, "old")])
def test_an_interrupted_copy_leaves_the_previous_checkpoint(plugin: bool, left: str, tmp_path: Path) -> None:
    code = f"""
    import os, shutil
    from fairseq.file_io import PathManager
    os.chdir({str(tmp_path)!r})
    for name, content in (("new.pt", "new"), ("checkpoint_last.pt", "old")):
        with open(name, "w") as file:
            file.write(content)
    def killed(source, target):
        with open(source) as whole, open(target, "w") as part:
            part.write(whole.read()[:2])
        raise KeyboardInterrupt
    copyfile, shutil.copyfile = shutil.copyfile, killed
    try:
        PathManager.copy("new.pt", "checkpoint_last.pt", overwrite=True)
    except KeyboardInterrupt:
        print(open("checkpoint_last.pt").read())
    shutil.copyfile = copyfile
    PathManager.copy("new.pt", "checkpoint_last.pt", overwrite=True)
    assert open("checkpoint_last.pt").read() == "new"
    """
    assert run_beside_fairseq(code, plugin=plugin).check().stdout.split() == [left]
