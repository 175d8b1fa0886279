"""Packages that subcommands and models import, and how they are installed."""

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from typing import NamedTuple

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.plugin import INSTALL_FAIRSEQ


class Package(NamedTuple):
    """A package that some of this project imports."""

    module: str
    """The name by which Python imports it."""
    distribution: str
    """The name by which pip installs it."""

    @property
    def install(self) -> str:
        """A command that installs it."""
        return INSTALL_FAIRSEQ if self.module == "fairseq" else f"pip install {self.distribution}"

    def version(self) -> str | None:
        """Its version, or None if it is not installed."""
        if importlib.util.find_spec(self.module) is None:
            return None
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return "of unknown version"


REQUIRED = [Package(name, name) for name in ("torch", "safetensors", "tqdm", "shtab")]
OPTIONAL = [
    Package("fairseq", "fairseq-fixed"),
    Package("sentencepiece", "sentencepiece"),
    Package("sacrebleu", "sacrebleu"),
    Package("soundfile", "soundfile"),
    Package("babel", "babel"),
    Package("num2words", "num2words"),
    Package("tokenizers", "tokenizers"),
    Package("pyarrow", "pyarrow"),
    Package("zstandard", "zstandard"),
    Package("transformers", "transformers"),
    Package("ctranslate2", "ctranslate2"),
    Package("onnx", "onnx"),
    Package("onnxscript", "onnxscript"),
    Package("lm_eval", "lm-eval"),
    Package("comet", "unbabel-comet"),
    Package("PIL", "pillow"),
    Package("pyvips", "pyvips"),
    Package("torchvision", "torchvision"),
    Package("h5py", "h5py"),
    Package("zarr", "zarr"),
    Package("openslide", "openslide-python"),
    Package("timm", "timm"),
    Package("matplotlib", "matplotlib"),
    Package("tensorboard", "tensorboard"),
    Package("flash_attn", "flash-attn"),
    Package("fla", "fla-core"),
]
"""The core works without these."""


@contextlib.contextmanager
def explaining_missing_packages() -> Iterator[None]:
    """Turn the ModuleNotFoundError of a package that is missing into a sentence that says how to install it.

    Raises:
        InputError: one of ``REQUIRED`` or ``OPTIONAL`` is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        package = next((package for package in [*REQUIRED, *OPTIONAL] if package.module == module), None)
        if package is None:
            raise
        raise InputError(f"this needs {package.distribution}, which is not installed: {package.install}") from error
