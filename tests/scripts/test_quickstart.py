"""scripts/quickstart.sh and scripts/setup.sh: their options, and (slow) the whole of what they do."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.fairseq_cli import REPOSITORY, Finished, run_program

QUICKSTART = REPOSITORY / "scripts/quickstart.sh"
SETUP = REPOSITORY / "scripts/setup.sh"


def refuses(message: str, *words: object, code: int, **environment: str) -> None:
    done = run_program(words, environment=environment)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines() == [message]


def test_help_of_quickstart_names_every_option() -> None:
    printed = run_program([QUICKSTART, "--help"]).check().stdout
    shared = QUICKSTART.parent / "lib.sh"
    handled = set(re.findall(r"^ +(--[a-z-]+)\) \w", shared.read_text(), flags=re.MULTILINE))
    assert handled == {"--arch", "--max-update", "--gpu", "--work-dir"}
    for option in handled:
        assert f"  {option} " in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--lr 1", "unknown option '--lr'; options of fairseq-train go after --"),
        ("mt_xmoe", "unknown option 'mt_xmoe'; options of fairseq-train go after --"),
        ("--arch", "--arch needs a value"),
        ("--max-update many", "--max-update takes a whole number above 0, not 'many'"),
        ("--max-update 0", "--max-update takes a whole number above 0, not '0'"),
    ],
)
def test_quickstart_refuses(options: str, message: str) -> None:
    refuses(f"quickstart.sh: {message}; see --help", QUICKSTART, *options.split(), code=2)


@pytest.fixture
def failing_training(tmp_path: Path) -> Path:
    """The script in a project that is set up and has its data, where every training ends with status 3."""
    (tmp_path / "scripts").mkdir()
    for name in (QUICKSTART.name, "lib.sh", "recipes.tsv", "show_command.py"):
        shutil.copy(QUICKSTART.parent / name, tmp_path / "scripts")
    for program, status in {"scripts/setup.sh": 0, ".venv/bin/fairseq-train": 3}.items():
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\nexit {status}\n")
        path.chmod(0o755)
    for directory in ("data/cldr.en-de", "data/cldr.en-de.bin"):
        (tmp_path / directory).mkdir(parents=True)
    return tmp_path / "scripts/quickstart.sh"


DENSE = "--criterion label_smoothed_cross_entropy --label-smoothing 0.1"
MIXED = "--criterion moe_label_smoothed_cross_entropy --moe-gate-loss-combine-method sum --moe-gate-loss-wt 0.05"


@pytest.mark.parametrize(
    ("arch", "criterion", "rate"),
    [
        ("mt_deepnorm_small", DENSE, "1e-3"),
        ("mt_deepnorm", DENSE, "5e-4"),
        ("mt_magneto_large", DENSE, "2.5e-4"),
        ("mt_xmoe_small", MIXED, "1e-3"),
        ("mt_xmoe", MIXED, "5e-4"),
    ],
)
def test_quickstart_trains_by_width_and_experts(failing_training: Path, arch: str, criterion: str, rate: str) -> None:
    done = run_program([failing_training, "--arch", arch])
    assert done.returncode == 3
    command = " ".join(done.stdout.partition("\nfairseq-train ")[2].replace("\\\n", " ").split())
    assert f" --arch {arch} {criterion} " in command
    assert f" --lr {rate} " in command
    assert "5/6" not in done.stdout


@pytest.fixture
def old_python(tmp_path: Path) -> Path:
    path = tmp_path / "python3.9"
    path.write_text("#!/bin/sh\necho 3.9\n")
    path.chmod(0o755)
    return path


def test_setup_refuses_another_python(old_python: Path, tmp_path: Path) -> None:
    message = f"setup.sh: PYTHON={old_python} is Python 3.9; fairseq and torch need 3.10 to 3.13"
    refuses(message, SETUP, code=1, PYTHON=str(old_python), VENV=str(tmp_path / "venv"))


def test_setup_refuses_a_python_that_is_not_there(tmp_path: Path) -> None:
    message = "setup.sh: PYTHON=python9 is not a program on this machine"
    refuses(message, SETUP, code=1, PYTHON="python9", VENV=str(tmp_path / "venv"))


def test_setup_needs_a_compiler(tmp_path: Path) -> None:
    message = (
        "setup.sh: found no C++ compiler ('no-c++'), which fairseq needs; install one (Debian: apt-get install g++)"
    )
    refuses(message, SETUP, code=1, CXX="no-c++", PYTHON=sys.executable, VENV=str(tmp_path / "venv"))
    assert not any(tmp_path.iterdir())


def test_setup_leaves_a_directory_that_is_no_environment_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    message = f"setup.sh: VENV={tmp_path} exists and is not a virtual environment; name another place"
    refuses(message, SETUP, code=1, PYTHON=sys.executable, VENV=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_setup_refuses_a_relative_path() -> None:
    message = "setup.sh: VENV=venv must be an absolute path"
    refuses(message, SETUP, code=1, VENV="venv")


def test_setup_refuses_an_argument() -> None:
    refuses("setup.sh: unknown argument '--gpu'; it takes none, see --help", SETUP, "--gpu", code=1)


def quickstart(*options: object) -> Finished:
    """Runs the script with all the cores and the environment that runs the tests."""
    return run_program([QUICKSTART, *options], environment={"OMP_NUM_THREADS": "", "VENV": sys.prefix}, timeout=1800)


@pytest.mark.slow
def test_quickstart_trains_a_model_that_translates(tmp_path: Path) -> None:
    first = quickstart("--work-dir", tmp_path).check().stdout
    scores = {row[0]: float(row[2]) for row in map(str.split, first.splitlines()) if len(row) == 5 and "%" in row[4]}
    assert len(scores) == 7
    assert scores["all"] >= 85
    assert first.count("\nreference  ") == 5
    second = quickstart("--work-dir", tmp_path).check().stdout
    assert "has finished this training" in second
    assert second.splitlines()[-20:] == first.splitlines()[-20:]


@pytest.mark.slow
def test_quickstart_resumes(tmp_path: Path) -> None:
    options = ("--work-dir", tmp_path, "--arch", "mt_magneto_small")
    quickstart(*options, "--max-update", 3, "--", "--max-tokens", 300).check()
    resumed = quickstart(*options, "--max-update", 5, "--", "--max-tokens", 300).check().stdout
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch 1 @ 3 updates\)", resumed)
    assert "is there already" in resumed
