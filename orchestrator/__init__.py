"""Holdfast: distributed training that never loses a step. See README.md.

`import orchestrator` loads neither ray nor zarr nor fsspec.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from orchestrator.discretion import discretion
from orchestrator.fitting import fit
from orchestrator.result import Result
from orchestrator.spec import Checkpoints, Job, RestartPolicy
from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from orchestrator.coordinator import Observer

__all__ = ["Checkpoints", "Job", "RestartPolicy", "Result", "fit", "run"]


@discretion()
def run(
    job: Job,
    run_dir: str | os.PathLike[str],
    *,
    workers: int | tuple[int, int],
    runtime: str = "ray",
    nodes: int = 1,
    standby: int = 0,
    address: str | None = None,
    insecure: bool = False,
    cpus_per_worker: float = 1.0,
    take_over: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Train a job to its end in a run directory at any fsspec URL; again, to go on where it stopped.

    `workers` may be (fewest, most). `runtime` is "ray" (at `address`, else RAY_ADDRESS, else a local Ray;
    `insecure` allows another machine's HOST:PORT without token or TLS) or "process" (subprocesses of this
    machine). Workers are spread over `nodes` nodes at least, if there are so many; the process runtime plays
    them. On each node `standby` more, which on Ray take CPUs too, take over at once when one dies. Progress
    is shown on standard error, or in a notebook, unless `observer` is given.

    Returns how the run stands: done, or preempted or interrupted by a signal, with a checkpoint. Raises an
    error of `storage.errors` if the job failed or could not begin. Neither this nor `Result.error` says what
    is secret: values of variables whose names end in KEY, TOKEN, PASSWORD and the like, passwords in URLs.
    """
    from orchestrator.display import make_display
    from orchestrator.execution import Request, execute
    from orchestrator.jobs import by_value

    if not isinstance(job, Job):
        raise ConfigurationError(f"{job!r} is no Job: give `orchestrator.Job(...)`")
    if not isinstance(run_dir, str | os.PathLike):
        raise ConfigurationError(f"run_dir={run_dir!r}: give a path or a URL")
    request = Request(
        job=job,
        source=by_value(job),
        run_dir=os.fspath(run_dir),
        workers=workers,
        nodes=nodes,
        standby=standby,
        runtime=runtime,
        address=address,
        insecure=insecure,
        cpus_per_worker=cpus_per_worker,
        take_over=take_over,
    )
    if observer is not None:
        result, error = execute(request, observer)
    else:
        with make_display() as display:
            result, error = execute(request, display)
    if error is not None:
        raise error
    return result
