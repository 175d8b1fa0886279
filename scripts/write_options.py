"""Writes docs/options.md from the configs and presets, the only places where options are declared.

python scripts/write_options.py           # rewrites docs/options.md
python scripts/write_options.py --check   # exit code 1 if it is out of date
"""

import argparse
import dataclasses
import sys
import typing
from dataclasses import Field
from enum import Enum
from pathlib import Path
from typing import Any

from torchscale_fairseq.core import config

TARGET = Path(__file__).parent.parent / "docs" / "options.md"
SECTIONS = {
    "Both sides": config.TransformerConfig,
    "LongNet: encoder or decoder alone": config.DilatedOptions,
    "Encoder": config.EncoderConfig,
    "Decoder": config.DecoderConfig,
    "Encoder-decoder": config.EncoderDecoderConfig,
    "Retention": config.RetentionSide,
    "Images": config.ImageOptions,
    "ViT and BEiT": config.ViTConfig,
    "Slides": config.SlideEncoderConfig,
    "Speech": config.SpeechOptions,
}
HEADER = """# Options

Written by `scripts/write_options.py`. Each option is a keyword of the config classes of the core
(`EncoderConfig(dropout=0.1)`), a flag of `fairseq-train` (`--dropout 0.1`) and a Hydra key (`model.dropout=0.1`).
A flag of kind *switch* takes no value. Options marked *core only* have no flag: fairseq's data and task decide them.
An architecture (`--arch`) starts from its preset, listed at the end, and a flag overrides it.
"""


def options_md() -> str:
    """The whole page."""
    seen: set[str] = set()
    parts = [HEADER]
    for title, config_class in SECTIONS.items():
        rows = [f for f in dataclasses.fields(config_class) if f.name not in seen]
        seen |= {f.name for f in rows}
        parts.append(f"\n## {title}\n\n| option | kind | default | meaning |\n|---|---|---|---|\n")
        hints = typing.get_type_hints(config_class)
        parts += [_row(f, hints[f.name]) for f in rows]
        if config_class is config.RetentionSide:
            parts.append(_of_retnet())
    parts.append(_of_the_hooks())
    parts.append("\n## Presets\n\n| architecture | differs from the defaults by |\n|---|---|\n")
    for name, preset in presets().items():
        parts.append(f"| `{name}` | {', '.join(f'`{k}={v}`' for k, v in preset.items())} |\n")
    return "".join(parts)


def _of_the_hooks() -> str:
    """The table of options that every model has in fairseq alone."""
    from torchscale_fairseq.hooks.options.model_options import ModelOptions  # and fairseq, as above

    hints = typing.get_type_hints(ModelOptions)
    rows = [
        f"| `--{f.name.replace('_', '-')}` | {_kind(hints[f.name])} | {_shown(f.default)} | {f.metadata['help']} |\n"
        for f in dataclasses.fields(ModelOptions)
        if f.name in ModelOptions.__annotations__
    ]
    head = (
        "These have no keyword in the core: fairseq's training reads them.\n\n| option | kind | default | meaning |\n"
    )
    return "".join(["\n## Training\n\n", head, "|---|---|---|---|\n", *rows])


def presets() -> dict[str, dict[str, Any]]:
    """Those of all architectures, by name."""
    from torchscale_fairseq.models import _presets as tables  # and fairseq, which takes seconds that --help is spared

    families = [tables.TRANSLATION, tables.LANGUAGE, tables.MASKED, tables.RETENTION, tables.RETENTION_TRANSLATION]
    families += [tables.IMAGE_TEXT, tables.IMAGES, tables.VISION, tables.MASKED_IMAGES, tables.SLIDES]
    families += [tables.SPEECH, tables.SPEECH_LONGNET, tables.SPEECH_RETENTION]
    return {name: dict(preset) for family in families for name, preset in family.items()}


def _of_retnet() -> str:
    """What RetNetConfig takes of the tables before, and where it differs from them."""
    own, shared = config.RetNetConfig.__dataclass_fields__, config.DecoderConfig.__dataclass_fields__
    taken = ", ".join(f"`{name}`" for name in own if name in shared)
    defaults = ", ".join(f"`{n}={f.default}`" for n, f in own.items() if n in shared and f.default != shared[n].default)
    return (
        f"\n`RetNetConfig` has these and, of the tables above, {taken}. Its defaults differ in {defaults}.\n"
        "`RetNetEncoderDecoderConfig` has these and what `EncoderDecoderConfig` has.\n"
    )


def _row(f: Field[Any], hint: Any) -> str:
    flag = f.name if f.metadata["core_only"] else "--" + f.name.replace("_", "-")
    kind = _kind(hint)
    if f.metadata["core_only"]:
        kind += ", core only"
    meaning, choices = f.metadata["help"], f.metadata["choices"] or ()
    if not all(choice in meaning for choice in choices):
        meaning += f"; one of {', '.join(choices)}"
    return f"| `{flag}` | {kind} | {_shown(f.default)} | {meaning} |\n"


def _kind(hint: Any) -> str:
    kind = next(k for k in typing.get_args(hint) or (hint,) if k is not type(None))
    return "switch" if kind is bool else "str" if issubclass(kind, Enum) else kind.__name__


def _shown(default: Any) -> str:
    return "unset" if default is None else f"`{default}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    options, page = parser.parse_args(), options_md()
    if not options.check:
        TARGET.write_text(page)
    elif not TARGET.exists() or TARGET.read_text() != page:
        sys.exit("docs/options.md is out of date; run python scripts/write_options.py")


if __name__ == "__main__":
    main()
