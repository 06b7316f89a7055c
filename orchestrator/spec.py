"""What a user asks for: validated, frozen settings. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from storage.errors import ConfigurationError
from storage.retention import Retention

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RUNTIMES = ("process", "ray")


def _positive(owner: str, name: str, value: object, *, optional: bool = False, zero: bool = False) -> None:
    if value is None and optional:
        return
    least = 0 if zero else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        or_none = " or None" if optional else ""
        raise ConfigurationError(
            f"{owner}({name}={value!r}): give a whole number of at least {least}{or_none}"
        )


def _seconds(owner: str, name: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value < math.inf):  # type: ignore[operator]
        raise ConfigurationError(f"{owner}({name}={value!r}): give a number of seconds above 0, or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """When checkpoints are written and how many are kept."""

    every_steps: int | None = 100
    """Steps between checkpoints. None: only the last step, and on preemption."""

    keep: int | None = 3
    """Newest checkpoints that are kept. None: all."""

    keep_every_steps: int | None = None
    """Checkpoints whose step is a multiple of it are kept too."""

    keep_every_hours: float | None = None
    """One checkpoint in so many hours is kept too."""

    keep_best: int | None = None
    """So many of the best by `best_metric` are kept too."""

    best_metric: str = "loss"
    """A metric that the job reports, such as "val_loss"."""

    best_mode: Literal["min", "max"] = "min"
    """Whether the best has the lowest or the highest value."""

    compression: Literal["zstd"] | None = None
    """How checkpoints are compressed."""

    in_flight: int = 2
    """Shards, of at most 256 MiB, that are written at a time. More may be faster to a store far away."""

    timeout_s: float | None = None
    """Seconds after which a writer that has not finished a checkpoint is killed and the checkpoint given up.
    None: 10 times as long as the slowest of the last ones took, or as 2 MB/s would take; 300 at least."""

    def __post_init__(self) -> None:
        _seconds("Checkpoints", "timeout_s", self.timeout_s)
        _positive("Checkpoints", "every_steps", self.every_steps, optional=True)
        _positive("Checkpoints", "in_flight", self.in_flight)
        try:
            self.retention  # noqa: B018 - it checks what it is made of
        except ConfigurationError as error:
            raise ConfigurationError(f"Checkpoints.{error}") from None
        if self.compression not in ("zstd", None):
            raise ConfigurationError(f'Checkpoints(compression={self.compression!r}): give "zstd" or None')

    @property
    def retention(self) -> Retention:
        """Which checkpoints are kept."""
        return Retention(
            keep=self.keep,
            keep_every_steps=self.keep_every_steps,
            keep_every_hours=self.keep_every_hours,
            keep_best=self.keep_best,
            best_metric=self.best_metric,
            best_mode=self.best_mode,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How often and how fast a job is restarted after a failure of the infrastructure.

    Deaths of workers are no restarts: they are replaced without limit, and cost no step.
    """

    max_restarts: int = 10
    """Restarts in hand at the start; each costs one."""

    refill_steps: int = 100
    """Steps beyond the highest ever reached that earn one restart back."""

    backoff_s: float = 1.0
    """Upper bound of the first wait in seconds; it doubles with each restart that brought no new step."""

    max_backoff_s: float = 60.0
    """Upper bound of every wait in seconds."""

    crash_loop: int = 3
    """Restarts in a row without a new highest step after which the job is given up."""

    def __post_init__(self) -> None:
        _positive("RestartPolicy", "max_restarts", self.max_restarts, zero=True)
        _positive("RestartPolicy", "refill_steps", self.refill_steps)
        _positive("RestartPolicy", "crash_loop", self.crash_loop)
        for name in ("backoff_s", "max_backoff_s"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise ConfigurationError(
                    f"RestartPolicy({name}={value!r}): give a number of seconds, 0 or more"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training job: what to train on what, for how long, and what makes it the same when it is resumed."""

    model: Callable[[], object]
    """Called on each worker: returns a compiled `nn` model, or an object with the methods of `Engine`."""

    data: Callable[[], Any]
    """Called on each worker: returns the training dataset."""

    batch_size: int
    """Samples of the global batch of a step. Part of the run's identity."""

    steps: int
    """Steps to train. Not part of the identity: running again with more goes on."""

    microbatches: int | None = None
    """Pieces that a batch is cut into; at most so many workers can take part. None: the number of workers of
    the first attempt. Part of the run's identity."""

    seed: int = 0
    """Of initial values, order of the data and dropout. Part of the run's identity."""

    shuffle: bool = True
    """Whether each pass over the data has an order of its own. Part of the run's identity."""

    remainder: Literal["keep", "drop", "pad"] = "keep"
    """What becomes of the samples that do not fill the last batch of a pass over the data: they make a short
    one, are left out, or are followed by the first samples of that pass. Part of the run's identity."""

    validation: Callable[[], Any] | None = None
    """Called on each worker: returns the validation dataset."""

    validate_every: int | None = None
    """Steps between evaluations of the validation data. None: only after the last step."""

    callbacks: Sequence[Any] | None = None
    """`workers.nn.callbacks` that are asked at the end of each pass over the data, which the batches have to
    fill; they may change the learning rate and end training. Part of the run's identity, by their classes.
    With an empty list the metrics of each pass are put on record; None: passes mean nothing."""

    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """When to write checkpoints."""

    restart: RestartPolicy = field(default_factory=RestartPolicy)
    """What to do after failures."""

    on_data_error: Literal["fail", "skip"] = "fail"
    """What happens when a dataset cannot read samples (its `take` raises an OSError, a StorageError or an
    exception of Arrow) and has been asked four times: fail, or leave that microbatch out of its step and put
    it on record. What was left out may differ from one run to the next, and then so do the bits."""

    paranoid: float = 0.0
    """Share of the microbatches that are computed twice, by two workers, and compared; where they differ, a
    third result decides whose worker is replaced. Independent only with three workers or more."""

    determinism: Literal["strict", "warn"] = "strict"
    """What happens when a run is resumed where arithmetic gives other bits: refuse it, or say so and go on.
    The workers of one attempt must always agree."""

    on_divergence: Literal["stop", "ignore"] = "stop"
    """What happens when the loss or the gradient of a step is not finite, and is so again when another worker
    computes it: the run fails with a record of it, or trains on with what there is."""

    worker_timeout_s: float | None = None
    """Seconds after which a worker that has not finished a piece of work (a microbatch, a segment of an
    update, a batch of validation data) is killed, and the work done by another. None: 10 times as long as
    such work takes, but 2 at least, 5 where data is read, and 60 for the first pieces."""

    def __post_init__(self) -> None:
        for name in ("model", "data", "validation"):
            value = getattr(self, name)
            if not callable(value) and not (name == "validation" and value is None):
                kind = type(value).__name__
                raise ConfigurationError(f"Job({name}=...): give a function without arguments, not {kind}")
        _positive("Job", "batch_size", self.batch_size)
        _positive("Job", "steps", self.steps)
        _positive("Job", "microbatches", self.microbatches, optional=True)
        _positive("Job", "seed", self.seed, zero=True)
        if self.seed >= 1 << 64:
            raise ConfigurationError(f"Job(seed={self.seed}): give a number below 2**64")
        if not isinstance(self.shuffle, bool):
            raise ConfigurationError(f"Job(shuffle={self.shuffle!r}): give True or False")
        if self.remainder not in ("keep", "drop", "pad"):
            raise ConfigurationError(f"Job(remainder={self.remainder!r}): give 'keep', 'drop' or 'pad'")
        _positive("Job", "validate_every", self.validate_every, optional=True)
        _seconds("Job", "worker_timeout_s", self.worker_timeout_s)
        if self.microbatches is not None:
            check_microbatches(self.batch_size, self.microbatches)
        if not isinstance(self.checkpoints, Checkpoints):
            raise ConfigurationError("Job(checkpoints=...): give orchestrator.Checkpoints(...)")
        if not isinstance(self.restart, RestartPolicy):
            raise ConfigurationError("Job(restart=...): give orchestrator.RestartPolicy(...)")
        if self.on_divergence not in ("stop", "ignore"):
            raise ConfigurationError(f"Job(on_divergence={self.on_divergence!r}): give 'stop' or 'ignore'")
        if self.on_data_error not in ("fail", "skip"):
            raise ConfigurationError(f"Job(on_data_error={self.on_data_error!r}): give 'fail' or 'skip'")
        if not (isinstance(self.paranoid, int | float) and 0 <= self.paranoid <= 1):
            raise ConfigurationError(f"Job(paranoid={self.paranoid!r}): give a share between 0 and 1")
        if self.determinism not in ("strict", "warn"):
            raise ConfigurationError(f"Job(determinism={self.determinism!r}): give 'strict' or 'warn'")


def check_microbatches(batch_size: int, microbatches: int) -> None:
    """Raise ConfigurationError if a batch cannot be cut into so many pieces."""
    if batch_size < microbatches:
        raise ConfigurationError(
            f"a batch of {batch_size} samples cannot be cut into {microbatches} microbatches: give a "
            f"batch_size of at least {microbatches}, or fewer microbatches"
        )


def check_remainder(job: Job, samples: int) -> None:
    """Raise ConfigurationError if dropping what fills no batch leaves no batch at all."""
    if job.remainder == "drop" and samples < job.batch_size:
        raise ConfigurationError(
            f"the {samples} samples of the data do not fill one batch of {job.batch_size}, so that "
            "remainder='drop' leaves none: give a smaller batch_size, or remainder='keep' or 'pad'"
        )


def check_place(
    run_dir: str, *, nodes: int, standby: int, cpus_per_worker: float, grace_s: float | None
) -> None:
    """Raise ConfigurationError for what no run can be given, whatever its job."""
    if run_dir.startswith("memory:"):
        raise ConfigurationError(
            f"--run-dir {run_dir}: the memory of one process cannot be seen by the others of a run: give a "
            "path or the URL of a storage"
        )
    from storage.address import check_run_url

    check_run_url(run_dir)
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
        raise ConfigurationError(f"--nodes {nodes}: give 1 or more")
    if not isinstance(standby, int) or isinstance(standby, bool) or standby < 0:
        raise ConfigurationError(f"--standby {standby}: give a whole number, 0 or more")
    if not 0 <= cpus_per_worker < math.inf:
        raise ConfigurationError(f"{cpus_per_worker} CPUs per worker: give a number of at least 0")
    if grace_s is not None and not 0 <= grace_s < math.inf:
        raise ConfigurationError(f"--grace-period {grace_s:g}: give a number of seconds, 0 or more")


def check_runtime(name: str) -> str:
    """The name, if there is such a runtime; else ConfigurationError."""
    if name not in RUNTIMES:
        raise ConfigurationError(f"there is no runtime {name!r}: give one of {', '.join(RUNTIMES)}")
    return name


def check_range(least: int, most: int) -> None:
    """Raise ConfigurationError if these cannot be the fewest and the most workers."""
    for count in (least, most):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigurationError(f"{count!r} workers cannot train: give a whole number, 1 or more")
    if least > most:
        raise ConfigurationError(f"between {least} and {most} workers: give the lower number first")


def check_workers(workers: int, microbatches: int) -> None:
    """Raise ConfigurationError if there are no workers, or more than can ever have work."""
    check_range(workers, workers)
    if workers > microbatches:
        raise ConfigurationError(
            f"{workers} workers are more than the job's {microbatches} microbatches, of which each needs at "
            f"least one: give --workers {microbatches} or fewer (or a new run with more microbatches)"
        )
