"""Many pieces of work in other processes or on other machines, results in order, a few pieces in memory.

In: a function at the top level of a module, and jobs one by one. Out: results, in the order of the jobs.
Engines: `local` (this process, or several on this machine) and `ray` (the machines of a Ray cluster, which must see the
same files). Refuses: an engine that is not installed; a machine that is lost is a `RunError`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

from regimen.cluster.ray import connected
from regimen.errors import RunError
from regimen.rollouts.processes import AHEAD, Processes

Engine = Literal["local", "ray"]
Job = TypeVar("Job")
Result = TypeVar("Result")


def map_ordered(
    function: Callable[[Job], Result], jobs: Iterable[Job], *, processes: Processes, engine: Engine = "local"
) -> Iterator[Result]:
    """`function` of each job; errors of a job are raised in its place."""
    return _on_ray(function, jobs) if engine == "ray" else processes.map(function, jobs)


def _on_ray(function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    with connected("--engine ray") as ray:
        remote = ray.remote(function)
        ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting: deque[Any] = deque()
        for job in jobs:
            waiting.append(remote.remote(job))
            if len(waiting) >= ahead:
                yield _fetched(ray, waiting.popleft())
        while waiting:
            yield _fetched(ray, waiting.popleft())


def _fetched(ray: Any, reference: Any) -> Any:
    """The result; an error of the job as it was raised there."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except ray.exceptions.RayError as error:
        raise RunError(f"Ray lost a piece of the work ({type(error).__name__})", fix="look at the cluster") from None
