"""Running fairseq's commands in tests.

Importing fairseq takes five seconds. ``run_fairseq`` therefore keeps one process in which fairseq (and not this
package) is imported, and forks it for every command: each runs in a process of its own, like the console script,
on a fresh copy of a fresh import. ``run_program`` starts real programs, where starting is what is tested.
"""

import atexit
import importlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
USER_DIR = REPOSITORY / "torchscale_fairseq"
COMMANDS = ("train", "generate", "interactive", "validate", "eval_lm", "preprocess", "hydra_train")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
"""As torchrun, which an environment that borrows another one's torch has no script of."""
TOOL = [sys.executable, "-m", "torchscale_fairseq"]
"""As torchscale-fairseq, of this copy of the package."""
PATHS = os.pathsep.join([str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": PATHS}

TINY_TRANSFORMER = shlex.split(
    "--arch transformer --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16 --decoder-embed-dim 16 "
    "--encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32 --encoder-attention-heads 2 --decoder-attention-heads 2 "
    "--share-all-embeddings --dropout 0"
)
TINY_LANGUAGE_MODEL = shlex.split(
    "--task language_modeling --arch transformer_lm --decoder-layers 1 --decoder-embed-dim 16 --decoder-input-dim 16 "
    "--decoder-output-dim 16 --decoder-ffn-embed-dim 32 --decoder-attention-heads 2 --dropout 0 "
    "--share-decoder-input-output-embed --tokens-per-sample 32 --required-batch-size-multiple 1"
)
FEW_UPDATES = shlex.split(
    "--optimizer adam --lr 1e-2 --batch-size 16 --max-update 4 --num-workers 0 --log-format simple --log-interval 1"
)


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def last_line(self) -> str:
        """What a user sees last: the error, if the command failed."""
        lines = [line for line in (self.stderr or self.stdout).splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def check(self) -> "Finished":
        assert self.returncode == 0, self.output[-5000:]
        return self


def run_fairseq(
    command: str,
    arguments: Sequence[Any],
    *,
    plugin: bool = True,
    cwd: Path | str = REPOSITORY,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
    timeout: int = 240,
) -> Finished:
    """Run ``fairseq-COMMAND`` (``eval_lm``, ``hydra_train`` with an underscore).

    Args:
        plugin: add ``--user-dir`` (for Hydra, ``common.user_dir``) with this package.
        environment: variables to set beside the usual ones.
    """
    words = [str(argument) for argument in arguments]
    if plugin:
        words += [f"common.user_dir={USER_DIR}"] if command == "hydra_train" else ["--user-dir", str(USER_DIR)]
    return _server().run(command, words, str(cwd), dict(environment or {}), stdin, timeout)


def run_beside_fairseq(code: str, *, plugin: bool, timeout: int = 120) -> Finished:
    """Run lines of Python where fairseq is imported already, after registering the plugin if asked."""
    register = "from torchscale_fairseq import plugin; plugin.register()\n" if plugin else ""
    return _server().run("code", [register + textwrap.dedent(code)], str(REPOSITORY), {}, "", timeout)


def run_processes(
    processes: int,
    command: str,
    arguments: Sequence[Any],
    *,
    before: str = "",
    environment: Mapping[str, str] | None = None,
    timeout: int = 120,
) -> Finished:
    """The same in several processes that know of each other as torchrun's do, and end when one fails, with its code.

    Args:
        before: lines of Python that each process runs first.
        environment: variables to set beside the usual ones.
    """
    words = [f"fairseq-{command}", *map(str, arguments), "--user-dir", str(USER_DIR)]
    return _run_forked(
        processes,
        f"""
        import os, sys
        from fairseq_cli import {command}
        os.environ.update({dict(environment or {})!r})
        sys.argv = {words!r}
        exec({before!r})
        {command}.cli_main()
        """,
        timeout,
    )


def run_gloo(processes: int, code: str, *, timeout: int = 120) -> Finished:
    """Run lines of Python in several processes of one gloo group; each prints "passed" at its end."""
    meet = "import torch.distributed\ntorch.distributed.init_process_group('gloo')\n"
    return _run_forked(processes, f"{meet}{textwrap.dedent(code)}\nprint('passed', flush=True)", timeout)


def run_nccl(processes: int, code: str, *, environment: Mapping[str, str], timeout: int = 120) -> Finished:
    """The same in one NCCL group, each process with a GPU of its own.

    Args:
        environment: in which these GPUs are visible.
    """
    meet = f"import os, torch.distributed\nos.environ.update({dict(environment)!r})\n"
    meet += "torch.cuda.set_device(int(os.environ['RANK']))\ntorch.distributed.init_process_group('nccl')\n"
    return _run_forked(processes, f"{meet}{textwrap.dedent(code)}\nprint('passed', flush=True)", timeout)


def _run_forked(processes: int, code: str, timeout: int) -> Finished:
    """Run lines of Python in several processes that know of each other as torchrun's do, and end when one fails."""
    code = f"""
    import os, signal, socket, sys
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = []
    for rank in range({processes}):
        running.append(os.fork())
        if running[-1] == 0:
            signal.alarm({timeout})  # of its parent, which fork does not pass on
            sys.stdout.reconfigure(line_buffering=True, write_through=False)  # whole lines, as all write to one file
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="{processes}", RANK=str(rank))
            exec({textwrap.dedent(code)!r})
            sys.stdout.flush()
            os._exit(0)
    while running:
        pid, status = os.wait()
        running.remove(pid)
        if status:
            for other in running:
                os.kill(other, signal.SIGKILL)
            sys.exit(max(1, os.waitstatus_to_exitcode(status)))
    """
    return _server().run("code", [textwrap.dedent(code)], str(REPOSITORY), {}, "", timeout)


def run_program(
    words: Sequence[Any],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | str = REPOSITORY,
    timeout: int = 240,
) -> Finished:
    """Run a program by name (of this Python's environment first) or path."""
    variables = {**os.environ, **ENVIRONMENT, **(environment or {})}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=timeout, env=variables, cwd=cwd
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def run_python(code: str, **options: Any) -> Finished:
    """Run lines of Python in a fresh interpreter."""
    return run_program([sys.executable, "-c", textwrap.dedent(code)], **options)


def tiny_translation_data(folder: Path) -> Path:
    """Binarised with a joined dictionary: 83 training, 21 valid, 21 test sentences over 30 words, which the target
    has in capitals. Made once per folder."""
    data = folder / "translation"
    if not data.exists():
        words = [f"w{index}" for index in range(30)]
        generator = random.Random(1)
        for split, size in (("train", 83), ("valid", 21), ("test", 21)):
            sentences = [" ".join(generator.choices(words, k=generator.randint(2, 9))) for _ in range(size)]
            (folder / f"{split}.en").write_text("\n".join(sentences) + "\n")
            (folder / f"{split}.de").write_text("\n".join(sentences).upper() + "\n")
        prefixes = [f"--{split}pref={folder / split}" for split in ("train", "valid", "test")]
        arguments = ["-s", "en", "-t", "de", *prefixes, "--destdir", data, "--joined-dictionary"]
        run_fairseq("preprocess", arguments, plugin=False).check()
    return data


def tiny_language_data(folder: Path) -> Path:
    """The English side of the same, binarised for language modelling."""
    data = folder / "language"
    if not data.exists():
        tiny_translation_data(folder)
        prefixes = [f"--{split}pref={folder / split}.en" for split in ("train", "valid", "test")]
        run_fairseq("preprocess", ["--only-source", *prefixes, "--destdir", data], plugin=False).check()
    return data


class _Server:
    """The process that has imported fairseq, seen from the tests."""

    def __init__(self) -> None:
        variables = {**os.environ, **ENVIRONMENT}
        command = [sys.executable, "-m", "tests.fairseq_cli"]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process runs)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=REPOSITORY,
            env=variables,
        )
        atexit.register(self.process.kill)

    def run(
        self, command: str, words: list[str], cwd: str, environment: dict[str, str], stdin: str, timeout: int
    ) -> Finished:
        with tempfile.TemporaryDirectory() as folder:
            request = [command, words, cwd, environment, stdin, timeout, folder]
            assert self.process.stdin is not None and self.process.stdout is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
            if not answer.startswith("rc="):
                self.log.seek(0)
                raise RuntimeError(f"the process that runs fairseq has ended:\n{self.log.read()[-5000:]}")
            texts = [(Path(folder) / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        return Finished(int(answer[3:]), *texts)


@cache
def _server() -> _Server:
    return _Server()


def _serve() -> None:
    """Fork for each request on stdin, and answer with the exit code."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    modules = {command: importlib.import_module(f"fairseq_cli.{command}") for command in COMMANDS}
    importlib.import_module("torch._dynamo")  # the first optimizer would import it, in seconds
    for line in sys.stdin:
        command, words, cwd, environment, stdin, timeout, folder = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.alarm(timeout)
            run = _run_code if command == "code" else modules[command].cli_main
            _become(run, command, words, cwd, environment, stdin, Path(folder))
        print(f"rc={os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", file=answers, flush=True)


def _run_code() -> None:
    exec(sys.argv[1], {"__name__": "__main__"})


def _become(
    run: Callable[[], None],
    command: str,
    words: list[str],
    cwd: str,
    environment: dict[str, str],
    stdin: str,
    folder: Path,
) -> None:
    """Run the command in this process, and end it."""
    (folder / "stdin").write_text(stdin)
    for descriptor, name, mode in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDWR), (2, "stderr", os.O_RDWR)):
        os.dup2(os.open(folder / name, mode | os.O_CREAT), descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.update(environment)
    sys.argv = [f"fairseq-{command}", *words]
    try:
        run()
        code = 0
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else 1
    except BaseException:
        code = _show_error()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _show_error() -> int:
    """As Python does with an error that nobody catches; gives the exit code."""
    try:
        sys.excepthook(*sys.exc_info())
    except SystemExit as request:
        return request.code if isinstance(request.code, int) else 1
    return 1


if __name__ == "__main__":
    _serve()


def column(output: str, tag: str, index: int = -1) -> dict[int, list[str]]:
    """Fields of the lines ``TAG-id``, by sentence."""
    result: dict[int, list[str]] = {}
    for line in output.splitlines():
        match = re.match(rf"{tag}-(\d+)\t", line)
        if match:
            result.setdefault(int(match.group(1)), []).append(line.split("\t")[index])
    return result
