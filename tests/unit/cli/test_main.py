"""The command line's one boundary: every way to fail ends in one line and the right exit code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from regimen.cli import main as cli
from regimen.cli.main import VERBS, explain, main
from regimen.errors import ConfigError, RolloutError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Replace the function behind `train` by one that raises what it is given."""

    def replace(error: BaseException | None) -> None:
        def train(config: str = "", speed: int = 1) -> None:
            """Stand in for training."""
            if error is not None:
                raise error

        single = typer.Typer(add_completion=False)
        single.command("train")(train)
        command = typer.main.get_command(single)
        monkeypatch.setattr(cli, "load_command", lambda name: command)

    return replace


def outcome(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and error stream of a command line."""
    code = main(words)
    return code, capsys.readouterr().err


def test_success_is_zero_and_silent(verb, capsys) -> None:
    verb(None)
    assert outcome(["train"], capsys) == (0, "")


def test_usage_error_is_one_line_and_two(verb, capsys) -> None:
    verb(ConfigError("unknown key 'learning_rate'", where="a.yaml", fix="did you mean 'lr'?"))
    assert outcome(["train"], capsys) == (
        2,
        "error: a.yaml: unknown key 'learning_rate'; to fix: did you mean 'lr'?\n",
    )


def test_failed_work_is_one(verb, capsys) -> None:
    verb(RolloutError("not JSON", where="a.jsonl:3"))
    assert outcome(["train"], capsys) == (1, "error: a.jsonl:3: not JSON\n")


def test_several_lines_become_one(verb, capsys) -> None:
    verb(RolloutError("first\n  second\n\nthird"))
    assert outcome(["train"], capsys) == (1, "error: first second third\n")


def test_full_disk(verb, capsys) -> None:
    verb(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/metrics.jsonl"))
    assert outcome(["train"], capsys) == (
        1,
        "error: run/metrics.jsonl: no space left on device; to fix: free space or write elsewhere; "
        "what was finished is kept\n",
    )


def test_no_permission(verb, capsys) -> None:
    verb(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/out"))
    assert outcome(["train"], capsys) == (
        1,
        "error: /out: permission denied; to fix: choose a place you may read and write\n",
    )


def test_unexpected_error_points_to_debug(verb, capsys) -> None:
    verb(ZeroDivisionError("division by zero"))
    assert outcome(["train"], capsys) == (
        1,
        "error: unexpected ZeroDivisionError: division by zero; --debug shows where\n",
    )


@pytest.mark.parametrize("words", [["--debug", "train"], ["train", "--debug"]])
def test_debug_shows_the_traceback(verb, capsys, words) -> None:
    verb(RolloutError("not JSON"))
    code, text = outcome(words, capsys)
    assert code == 1
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("error: not JSON\n")


def test_interruption_says_what_is_kept(verb, capsys) -> None:
    verb(KeyboardInterrupt())
    assert outcome(["train"], capsys) == (130, f"interrupted: {VERBS['train'].kept}\n")


def test_interruption_may_say_it_itself(verb, capsys) -> None:
    verb(KeyboardInterrupt("step 3 is saved in run/step_3"))
    assert outcome(["train"], capsys) == (130, "interrupted: step 3 is saved in run/step_3\n")


def test_broken_pipe_is_silent(verb, capsys, monkeypatch) -> None:
    verb(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
    monkeypatch.setattr(cli, "_discard_stdout", lambda: None)
    assert outcome(["train"], capsys) == (141, "")


def test_missing_extra_says_what_to_install() -> None:
    missing = ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
    assert explain(missing) == ("the package torch is not installed; to fix: pip install 'regimen-rl[train]'", 2)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?; see 'regimen --help'"),
        (["train", "--fast"], "No such option: --fast; see 'regimen train --help'"),
        (["train", "--speed", "x"], "Invalid value for '--speed': 'x' is not a valid int"),
        (["--fast"], "No such option: --fast; see 'regimen --help'"),
    ],
)
def test_wrong_command_line_is_one_line_and_two(verb, capsys, words, line) -> None:
    verb(None)
    code, text = outcome(words, capsys)
    assert code == 2
    assert text.startswith(f"error: {line}")
    assert text.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_names_every_verb(words, capsys) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_standard_output(capsys, monkeypatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["version"]) == 1
    assert capsys.readouterr().err.startswith("error: no space left on device")


def test_version(capsys) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("regimen 0.1.0\npython 3.")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_no_help_text_holds_what_would_be_taken_for_markup(verb: str) -> None:
    texts = [getattr(parameter, "help", None) or "" for parameter in cli.load_command(verb).params]
    assert [text for text in texts if "[" in text] == []


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_process_ends_with_its_code_and_all_its_words(number: str, tmp_path: Path) -> None:
    """One of many ends without the interpreter's way out, which flushes what was printed into a pipe."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WORLD_SIZE": number, "RANK": "0"}
    command = [sys.executable, "-m", "regimen.cli.main"]
    asked = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True, check=False)
    assert asked.returncode == 0
    assert "Print the versions of Regimen" in asked.stdout
    assert asked.stdout.endswith("\n")
    missing = str(tmp_path / "nothing.jsonl")
    wrong = subprocess.run([*command, "inspect", missing], env=environment, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "no such file" in wrong.stderr
