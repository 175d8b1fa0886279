"""The package's source, parsed once."""

import ast
from functools import cache
from pathlib import Path

import torchscale_fairseq

PACKAGE = Path(torchscale_fairseq.__file__).parent


@cache
def trees() -> dict[str, ast.Module]:
    """The modules of the package, by their dotted names."""
    paths = {path.relative_to(PACKAGE.parent).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    named = {".".join(parts.parts).removesuffix(".__init__"): path for parts, path in paths.items()}
    return {name: ast.parse(path.read_text()) for name, path in named.items()}
