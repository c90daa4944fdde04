"""The command `regimen`: one table of verbs, and the one place where errors become a line and an exit code.

In: the words of the command line. Out: the exit code; docs/errors.md lists them.
A verb's module is imported when the verb is called: `regimen --help` imports none of them.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from regimen.errors import OtherRankError, RegimenError, UsageError
from regimen.rank import is_first_process

# Threads that spin long while they wait make two busy processes on two cores many times slower, threads that do not
# spin at all make one process half as fast. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")


class Verb(NamedTuple):
    """One command: its line in `regimen --help`, the function behind it, and what an interruption leaves."""

    help: str
    target: str
    kept: str = "nothing half-written was left"


VERBS: dict[str, Verb] = {
    "collect": Verb(
        "Let a model play tasks of an environment and write its rollouts.",
        "regimen.cli.collect:collect",
        "finished episodes are in the output file; --resume plays the rest",
    ),
    "serve": Verb(
        "Serve a model, an environment, or an agent that plays it, over HTTP.",
        "regimen.cli.serve:serve",
        "the server has stopped",
    ),
    "init": Verb("Write the files that an environment of your own begins with.", "regimen.cli.init:init"),
    "test": Verb("Check that an environment keeps what environments promise.", "regimen.cli.test:check"),
    "inspect": Verb(
        "Say what is in a rollouts file, what is wrong with it and what to do next.", "regimen.cli.inspect:inspect"
    ),
    "doctor": Verb(
        "Say what would go wrong in a training run: data, tokenizer, lengths, batches, memory.",
        "regimen.cli.doctor:doctor",
    ),
    "plan": Verb(
        "Predict memory, tokens and time of a training run, and say what to change when it does not fit.",
        "regimen.cli.plan:plan",
    ),
    "convert": Verb(
        "Convert rollouts into SFT, DPO or GRPO rows, with every row accounted for.", "regimen.cli.convert:convert"
    ),
    "export": Verb(
        "Write a training configuration and its data for another trainer: NeMo RL or TRL.",
        "regimen.cli.export:export",
    ),
    "train": Verb(
        "Train a model by SFT, DPO or GRPO from a configuration file.",
        "regimen.cli.train:train",
        "finished steps and checkpoints are in the run folder; --resume continues from the last checkpoint",
    ),
    "merge": Verb("Merge LoRA adapters into their model: an ordinary model folder.", "regimen.cli.merge:merge"),
    "evaluate": Verb(
        "Measure a model on an environment's tasks, and compare it with another.", "regimen.cli.evaluate:evaluate"
    ),
    "iterate": Verb(
        "Repeat collect, convert, train and evaluate, keeping a model only when it is better.",
        "regimen.cli.iterate:iterate",
        "finished rounds are in the run folder; --resume continues from there",
    ),
    "quickstart": Verb(
        "Run the whole loop on this computer with a small model, in minutes.",
        "regimen.cli.quickstart:quickstart",
        "finished stages are in the folder",
    ),
    "version": Verb("Print the versions of Regimen and of what it runs on.", "regimen.cli.version:version"),
}

# Python modules of the optional dependencies -> the extra that installs them.
EXTRAS = {
    "peft": "lora",
    "bitsandbytes": "qlora",
    "torch": "train",
    "transformers": "train",
    "safetensors": "train",
    "tensorboard": "train",
    "gguf": "quickstart",
    "httpx": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
}

INTERRUPTED = 130
BROKEN_PIPE = 141


class LazyGroup(TyperGroup):
    """A group whose commands are lines of `VERBS` until one of them is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=verb.help) for name, verb in VERBS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command of the verb that was typed."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(str(name)), rest


app = typer.Typer(cls=LazyGroup, add_completion=False, no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def regimen(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """From a gym's rollouts to a measurably better model."""


def load_command(name: str) -> Any:
    """Import the function behind a verb and make it a command."""
    module, attribute = VERBS[name].target.split(":")
    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    single.command(name)(getattr(importlib.import_module(module), attribute))
    return typer.main.get_command(single)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return BROKEN_PIPE
    except (KeyboardInterrupt, typer.Abort) as interrupt:
        if is_first_process():  # of many processes, one says it
            _complain(f"interrupted: {str(interrupt) or _kept(words)}")
        return INTERRUPTED
    except OtherRankError as error:  # which said why
        return error.exit_code
    except Exception as error:  # the boundary: every failure ends as one line and an exit code
        if debug:
            traceback.print_exc()
        message, code = explain(error)
        _complain(f"error: {message}")
        if isinstance(error, OSError):
            _discard_stdout()
    return code


def _run(words: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("regimen", words, obj=words) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def explain(error: Exception) -> tuple[str, int]:
    """The one line and the exit code of an error."""
    if isinstance(error, RegimenError):
        return _one_line(error), error.exit_code
    if isinstance(error, typer.TyperException):
        return _misuse(error), UsageError.exit_code
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in EXTRAS:
        module = str(error.name).split(".")[0]
        return f"the package {module} is not installed; to fix: pip install 'regimen-rl[{EXTRAS[module]}]'", 2
    if isinstance(error, OSError) and error.errno is not None:
        return _system(error), 1
    return f"unexpected {type(error).__name__}: {_one_line(error)}; --debug shows where", 1


def _misuse(error: Any) -> str:
    """A wrong command line: what is wrong, and where the right form stands."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "regimen"
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"{' '.join(text.split()).rstrip('.')}; see '{where} --help'"


def _system(error: OSError) -> str:
    """What the operating system refused, with what to do about the usual cases."""
    place = f"{error.filename}: " if error.filename else ""
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place}{reason}; to fix: free space or write elsewhere; what was finished is kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{place}{reason}; to fix: choose a place you may read and write"
    return f"{place}{reason}"


def _kept(words: Sequence[str]) -> str:
    verb = next((word for word in words if word in VERBS), None)
    return VERBS[verb].kept if verb else "nothing was started"


def _one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _complain(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        return  # nowhere left to say it; the exit code still does


def _discard_stdout() -> None:
    """Point standard output at nothing, so that the interpreter's last flush does not fail as well."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
    except (OSError, ValueError):
        return


def _leave(code: int) -> NoReturn:
    """End this process. One of many ends at once, as what it met the others by may have threads that still run.

    The interpreter's way out stops such threads inside the libraries, which then abort a run that has succeeded.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
