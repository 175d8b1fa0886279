"""Print a script that completes subcommands, options and file names of this command when Tab is pressed.

bash: add eval "$(torchscale-fairseq completion bash)" to ~/.bashrc
zsh:  torchscale-fairseq completion zsh > "${fpath[1]}/_torchscale-fairseq"
fish: torchscale-fairseq completion fish > ~/.config/fish/completions/torchscale-fairseq.fish
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

EXAMPLE = "torchscale-fairseq completion bash > torchscale-fairseq.bash"
SHELLS = ("bash", "zsh", "fish")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def run(options: argparse.Namespace) -> None:
    import shtab

    from torchscale_fairseq.tools.command import SubcommandParser, make_parser
    from torchscale_fairseq.tools.options import location

    def loaded(parser: SubcommandParser) -> Iterator[argparse.ArgumentParser]:
        parser.load()
        yield parser
        for subcommand in parser.subcommands.values():
            yield from loaded(subcommand)

    whole = make_parser()
    for parser in loaded(whole):
        for action in parser._actions:
            if action.type in (Path, location):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(whole, options.shell))
