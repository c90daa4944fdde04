"""One step off: the episodes of the next step are played while this one trains, with the weights before its update.

In: a source of episodes. Out: its batches, each with the age of the weights that played it. The first step, and the
first after resuming, plays with the weights it trains.
Refuses: episodes older than the bound.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from regimen.errors import RunError
from regimen.pipelines.batch import Batch
from regimen.pipelines.batches import EpisodeBatches


class AheadBatches:
    """See `regimen.pipelines.batches.BatchSource`."""

    def __init__(self, source: EpisodeBatches, max_age: int) -> None:
        self.source, self.max_age = source, max_age
        self.total_steps = source.total_steps
        self._thread = ThreadPoolExecutor(1, "regimen-ahead")
        self._playing: tuple[int, Future[Batch]] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of `step`; the next one begins to be played."""
        playing = self._playing or self._play(step)
        self._playing = None
        batch = playing[1].result()
        if playing[0] != step:  # somebody looks at another step than the next
            batch = self.source.batch(step)
        if step + 1 < self.total_steps:
            self._playing = self._play(step + 1)
        batch.age = 0 if batch.weight_version is None else step - batch.weight_version
        if batch.age > self.max_age:
            raise RunError(
                f"an episode was played {batch.age} steps ago",
                where=f"step {step + 1}",
                expected=f"at most {self.max_age} (grpo.async_grpo.max_trajectory_age_steps)",
            )
        batch.metrics["trajectory_age"] = float(batch.age)
        return batch

    def settle(self) -> None:
        """Wait until nothing is being played; raises what went wrong there.

        At once, and not when the batch is asked for: weights are handed over by all processes together, and the others
        of a process whose episodes failed still wait for these.
        """
        if self._playing is not None:
            self._playing[1].result()

    def close(self) -> None:
        """End the thread, once the episodes under way have ended."""
        self._thread.shutdown(wait=True)

    def _play(self, step: int) -> tuple[int, Future[Batch]]:
        return step, self._thread.submit(self.source.batch, step)
