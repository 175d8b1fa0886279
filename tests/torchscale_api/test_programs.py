"""Programs as projects that build on TorchScale write them, run unchanged by ``torchscale_fairseq.as_torchscale``."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("fairseq")  # whose test server runs them

from tests.fairseq_cli import REPOSITORY, run_beside_fairseq, run_gloo, run_program

PROGRAMS = Path(__file__).parent / "programs"
LAST_WORDS = {
    "captioning": "captioned",
    "slides": "embedded",
    "prompts": "prompted",
    "retention": "stepped",
    "experts": "trained",
    "finetuning": "fine-tuned",
    "pathology": "embedded",
    "translation": "translated",
    "differential": "decoded",
    "speech": "heard",
}
RUN = "import torchscale_fairseq.as_torchscale, runpy; runpy.run_path({!r}, run_name='__main__')"


@pytest.mark.parametrize("name", LAST_WORDS)
def test_program_runs(name: str) -> None:
    done = run_beside_fairseq(RUN.format(str(PROGRAMS / f"{name}.py")), plugin=False).check()
    assert done.stdout.splitlines()[-1] == LAST_WORDS[name]


def test_experts_of_two_processes() -> None:
    done = run_gloo(2, RUN.format(str(PROGRAMS / "experts.py"))).check()
    assert done.stdout.split().count("trained") == 2


def test_command_and_distribution() -> None:
    """The command shadows an installed TorchScale; ``drop_in`` serves without it."""
    command = [sys.executable, "-m", "torchscale_fairseq.as_torchscale", PROGRAMS / "retention.py"]
    assert run_program(command).check().stdout.strip() == "stepped"
    code = (
        "import torchscale; from torchscale.architecture.encoder import Encoder; print(torchscale.__version__, Encoder)"
    )
    paths = f"{REPOSITORY / 'drop_in'}:{REPOSITORY}"
    done = run_program([sys.executable, "-c", code], environment={"PYTHONPATH": paths}).check()
    assert done.stdout.strip() == "0.4.0 <class 'torchscale_fairseq.torchscale_api.architecture.encoder.Encoder'>"
