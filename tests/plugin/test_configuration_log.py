"""The configuration stands in log files, not in the terminal."""

import logging
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from torchscale_fairseq.hooks.monitoring import configuration_log


def test_configuration_goes_to_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configuration_log.log_configuration_to_files()
    logger = logging.getLogger("fairseq_cli.train")
    file, terminal = logging.FileHandler(tmp_path / "log"), logging.StreamHandler()
    logger.addHandler(file)
    logging.root.addHandler(terminal)
    try:
        logger.error(OmegaConf.create({"task": "translation"}))
        logger.error("begin")
    finally:
        logger.removeHandler(file)
        logging.root.removeHandler(terminal)
    assert (tmp_path / "log").read_text() == "{'task': 'translation'}\nbegin\n"
    assert capsys.readouterr().err == "begin\n"
