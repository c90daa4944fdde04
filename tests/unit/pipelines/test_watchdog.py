"""A stage that hangs is named, with the stacks of all threads; one that goes on is left alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from regimen.errors import RunError
from regimen.pipelines.watchdog import Watchdog

PERSISTENT = """
import sys, time
from pathlib import Path
from regimen.pipelines import watchdog

watchdog.GRACE_SECONDS = 0.2
with watchdog.Watchdog(Path(sys.argv[1]), 0.2) as guard:
    guard.enter("policy_training")
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
"""


def wait_for_a_tool_that_never_answers() -> None:
    time.sleep(60)


def wait_through_everything() -> None:
    try:
        wait_for_a_tool_that_never_answers()
    except Exception:  # what an environment's boundary does
        pytest.fail("the watchdog was swallowed")


async def wait_in_a_loop() -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize("hang", [wait_through_everything, lambda: asyncio.run(wait_in_a_loop())])
def test_a_stage_without_progress_is_named(hang, tmp_path: Path) -> None:
    began = time.monotonic()

    def run() -> None:
        with Watchdog(tmp_path / "failures", 0.2) as watchdog:
            watchdog.enter("generation")
            hang()

    with pytest.raises(RunError, match=r"hang_generation\.txt: no progress for 0\.2 s in the stage 'generation'"):
        run()
    assert time.monotonic() - began < 10
    text = (tmp_path / "failures" / "hang_generation.txt").read_text()
    assert text.startswith("stage: generation\n")
    assert "in wait_for_a_tool_that_never_answers" in text or "in run_forever" in text


def test_beats_keep_it_quiet_and_none_watches_nothing(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0.4) as watchdog:
        watchdog.enter("policy_training")
        for _ in range(12):
            time.sleep(0.05)
            watchdog.beat()
    with Watchdog(tmp_path, None) as watchdog:
        assert threading.active_count() == 1 or "watchdog" not in {t.name for t in threading.enumerate()}
        watchdog.beat()
    assert list(tmp_path.iterdir()) == []


def test_other_errors_and_interruptions_pass(tmp_path: Path) -> None:
    for error in (ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), Watchdog(tmp_path, 60):
            raise error


def test_in_another_thread_the_next_beat_raises(tmp_path: Path) -> None:
    seen: list[str] = []

    def work() -> None:
        try:
            with Watchdog(tmp_path, 0.1) as watchdog:
                watchdog.enter("checkpointing")
                deadline = time.monotonic() + 20
                while time.monotonic() < deadline and not list(tmp_path.iterdir()):
                    time.sleep(0.02)
                time.sleep(0.1)
                watchdog.beat()
        except RunError as error:
            seen.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "in the stage 'checkpointing'" in seen[0]


def test_what_cannot_be_interrupted_ends_the_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PERSISTENT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "in the stage 'policy_training'" in done.stderr
    assert (tmp_path / "hang_policy_training.txt").is_file()
