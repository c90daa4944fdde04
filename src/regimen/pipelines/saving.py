"""Writing a run's checkpoints, at once or by a thread while training goes on.

In: what stands after a step. Out: checkpoints in the run folder. With `checkpointing.is_async` a copy of weights and
state is written by one thread, one checkpoint after the other; a write that fails stops the run at its next step, with
the reason. Many processes write together, the first one what all have in common. Refuses nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from regimen.config.schema import CheckpointingConfig
from regimen.pipelines.processes import write_together
from regimen.pipelines.run import SHARDS_FOLDER, STATE_FILE, RunFolder
from regimen.policy.base import Policy
from regimen.policy.checkpoint import copied, save_state
from regimen.policy.randomness import random_state
from regimen.policy.ranks import Ranks
from regimen.tokens.template import Renderer


class Checkpointer:
    """`saved_step` is the last step whose checkpoint was begun."""

    def __init__(
        self,
        settings: CheckpointingConfig,
        run: RunFolder,
        policy: Policy,
        renderer: Renderer,
        ranks: Ranks | None = None,
    ) -> None:
        self.settings, self.run, self.policy, self.renderer = settings, run, policy, renderer
        self.ranks = ranks or Ranks()
        if settings.is_async:  # what the threads say to each other must not get between what training says
            self.ranks = self.ranks.apart()
        self.saved_step = run.start_step
        self._thread = ThreadPoolExecutor(1, "regimen-checkpoint") if settings.is_async else None
        self._pending: Future[None] | None = None

    def save(self, step: int, info: dict[str, Any], *, with_state: bool) -> None:
        """Write the checkpoint of `step`; `info` goes into training_info.json, its ledgers and metrics are restored."""
        self.wait()
        write = self._writer(info, with_state)
        self.saved_step = step
        if self._thread is None:
            self._write(step, write, info)
        else:
            self._pending = self._thread.submit(self._write, step, write, info)

    def check(self) -> None:
        """Raise what a finished write failed with."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the write that is under way; raise what it failed with."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Let the write under way end; what it failed with is not raised, as something else ended the run."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    def _write(self, step: int, write: Callable[[Path], None], info: dict[str, Any]) -> None:
        settings = self.settings
        if not self.ranks.is_first:
            write_together(write, self.run.unfinished(step), self.ranks)
            return
        self.run.save(
            step,
            lambda folder: write_together(write, folder, self.ranks),
            info,
            keep=settings.keep_top_k,
            higher_is_better=settings.higher_is_better,
        )

    def _writer(self, info: dict[str, Any], with_state: bool) -> Callable[[Path], None]:
        """A function that writes what stands now; for a thread, from copies."""
        write_weights, write_shards = self.policy.save, self.policy.save_shards
        state: dict[str, Any] | None = None
        if with_state:
            kept = {name: info[name] for name in ("ledger", "environments", "metrics")}
            state = {"policy": self.policy.state(), "random": random_state(), **kept}
        if self._thread is not None:
            write_weights, state = self.policy.saver(), copied(state)
            if with_state:
                write_shards = self.policy.shards_saver(self.ranks.group)

        def write(folder: Path) -> None:
            write_weights(folder)
            self.ranks.wait()  # the first process puts the folder there whole, so nothing may be in it before
            if state is not None:
                write_shards(folder / SHARDS_FOLDER)
            if self.ranks.is_first:
                self.renderer.save(folder)
                if state is not None:
                    save_state(state, folder / STATE_FILE)

        return write
