"""`holdfast submit`: a run on a Ray cluster, whether or not who submitted it stays."""

from __future__ import annotations

import json
import os
import random
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import submission as sub
from orchestrator.arguments import (
    CpusPerWorker,
    Insecure,
    Nodes,
    Parameters,
    Steps,
    Target,
    check_workers_text,
    parameters_of,
    workers_of,
)
from orchestrator.ckpt import AsJson  # noqa: TC001 typer reads it
from orchestrator.configured import Config, Configured
from orchestrator.discretion import variables_of
from orchestrator.relaunch import STOP, Relaunches, awaited, check_not_awaited
from orchestrator.spec import check_place
from orchestrator.terminal import put, say
from storage.errors import (
    ConfigurationError,
    HoldfastError,
    InfrastructureError,
    RunAlive,
    StorageError,
    UserCodeError,
)
from workers.output import keep_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.ray_jobs import JobServer
    from orchestrator.restart import Restart
    from orchestrator.submission import Job, Submission
    from storage.run_directory import RunDirectory

LOOK_S = 1.0
AWAY_S = 600.0
"""Seconds that the job server may not answer before the submitter gives the cluster up."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(cls=Configured)(submit)


def submit(
    target: Target,
    address: Annotated[
        str, typer.Option(metavar="URL", help="The cluster's job server, as in http://127.0.0.1:8265.")
    ],
    run_dir: Annotated[
        str, typer.Option("--run-dir", metavar="URL", help="Where the run is kept; all nodes must reach it.")
    ],
    workers: Annotated[
        str,
        typer.Option("--workers", metavar="N | MIN:MAX", help="As in `run`.", callback=check_workers_text),
    ],
    cpus_per_worker: CpusPerWorker = 1.0,
    name: Annotated[
        str | None, typer.Option(help="What to call the run; else the last part of its directory.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME", help="A variable that the run gets, by its name alone."),
    ] = None,
    working_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="What is sent along, and where the run starts; else the job's."),
    ] = None,
    no_package: Annotated[
        bool,
        typer.Option("--no-package", help="Send nothing: each node has FILE, under its path in full."),
    ] = False,
    pip: Annotated[
        str | None, typer.Option(metavar="FILE", help="A requirements file, to be installed for the run.")
    ] = None,
    retries: Annotated[
        int, typer.Option(metavar="N", help="Relaunches in hand; progress earns them back.")
    ] = 10,
    on_demand: Annotated[
        list[str] | None,
        typer.Option("--on-demand", metavar="K=V", help="Label of the node for the coordinator; else head."),
    ] = None,
    spot: Annotated[
        list[str] | None, typer.Option("--spot", metavar="K=V", help="Label of the nodes for the workers.")
    ] = None,
    steps: Steps = None,
    settings: Parameters = None,
    nodes: Nodes = 1,
    standby: Annotated[int, typer.Option(metavar="N", help="As in `run`.")] = 0,
    autoscale: Annotated[bool, typer.Option("--autoscale", help="As in `run`.")] = False,
    grace_period: Annotated[float | None, typer.Option(metavar="S", help="As in `run`.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted.")] = False,
    insecure: Insecure = False,
    config: Config = None,
    as_json: AsJson = False,
) -> int:
    """Run a job on a Ray cluster, or go on with it.

    It is relaunched there after failures that are not the job's own, whether or not anybody stays to watch.

    holdfast submit train.py --address http://127.0.0.1:8265 --run-dir s3://bucket/runs/digits --workers 2:8
    """
    submission = submission_of(
        target=target,
        address=address,
        run_dir=run_dir,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        name=name,
        env=env,
        working_dir=working_dir,
        no_package=no_package,
        pip=pip,
        retries=retries,
        on_demand=on_demand,
        spot=spot,
        steps=steps,
        settings=settings,
        nodes=nodes,
        standby=standby,
        autoscale=autoscale,
        grace_period=grace_period,
        insecure=insecure,
    )
    if dry_run:
        put(json.dumps(submission.plan()) if as_json else _in_words(submission))
        return 0
    submitter = _Submitter(submission, insecure=insecure)
    id_ = submitter.submit()
    say(f"submitted as {id_} to {submission.address}")
    if detach:
        say(submitter.how_to_come_back())
        put(
            json.dumps({"job": id_, "address": submission.address, "run_dir": submission.run_dir})
            if as_json
            else f"run directory {submission.run_dir}"
        )
        return 0
    return _follow(submitter, as_json=as_json)


def submission_of(
    *,
    target: str,
    address: str,
    run_dir: str,
    workers: str,
    cpus_per_worker: float,
    name: str | None,
    env: Sequence[str] | None,
    working_dir: str | None,
    no_package: bool,
    pip: str | None,
    retries: int,
    on_demand: Sequence[str] | None,
    spot: Sequence[str] | None,
    steps: int | None,
    settings: list[str] | None,
    nodes: int,
    standby: int,
    autoscale: bool,
    grace_period: float | None,
    insecure: bool,
) -> Submission:
    """What the parameters of `submit` ask for. Raises ConfigurationError or UserCodeError."""
    from storage.store import open_store

    workers_of(workers)
    check_place(run_dir, nodes=nodes, standby=standby, cpus_per_worker=cpus_per_worker, grace_s=grace_period)
    if steps is not None and steps < 1:
        raise ConfigurationError(f"--steps {steps}: give 1 or more")
    names = sub.names_of([*(env or []), *variables_of(parameters_of(settings))], os.environ)
    keep_secret(names)
    address = sub.check_address(address, os.environ, insecure=insecure)
    if retries < 0:
        raise ConfigurationError(f"--retries {retries}: give 0 or more")
    if pip is not None and not Path(pip).is_file():
        raise ConfigurationError(f"--pip {pip}: there is no such file")
    url = open_store(run_dir).url
    if no_package and working_dir is not None:
        raise ConfigurationError("--no-package sends nothing: leave --working-dir out")
    entry, folder, excludes = (_in_place(target), None, ()) if no_package else _code(target, working_dir, url)
    command = ["run", entry, "--run-dir", url, "--workers", workers, "--address", "auto"]
    command += ["--cpus-per-worker", f"{cpus_per_worker:g}"]
    for option, value in (("--steps", steps), ("--grace-period", grace_period)):
        command += [] if value is None else [option, f"{value:g}" if isinstance(value, float) else str(value)]
    command += ["--nodes", str(nodes)] if nodes != 1 else []
    command += ["--standby", str(standby)] if standby else []
    command += ["--autoscale"] if autoscale else []
    for setting in settings or []:
        command += ["--set", setting]
    return sub.Submission(
        address=address,
        run_dir=url,
        command=tuple(command),
        name=name or url.rstrip("/").rpartition("/")[2],
        env=names,
        working_dir=folder,
        excludes=excludes,
        pip=pip,
        retries=retries,
        on_demand=sub.labels_of("--on-demand", on_demand or []),
        spot=sub.labels_of("--spot", spot or []),
        words=tuple(sys.argv[1:]),
        folder=os.getcwd(),
    )


def _follow(submitter: _Submitter, *, as_json: bool) -> int:
    from orchestrator.cli import summary
    from orchestrator.status import read_status

    try:
        verdict = submitter.follow()
    except KeyboardInterrupt:
        say(f"the run goes on without you; {submitter.how_to_come_back()}")
        if as_json:
            put(json.dumps(read_status(submitter.run)[0].to_json()))
        return sub.STOPPED
    if verdict.code != sub.DONE:
        say(f"holdfast: error: the run ended with exit code {verdict.code}: {verdict.reason}")
    try:
        result, beat = read_status(submitter.run)
    except StorageError as error:  # how it ended is known
        say(f"holdfast: error: {error}")
        return verdict.code
    if beat or as_json:
        put(json.dumps(result.to_json()) if as_json else summary(result, with_error=True))
    return verdict.code


def _in_place(target: str) -> str:
    """A job that is on all nodes, in an image for instance; it need not be here."""
    from orchestrator.examples import EXAMPLES

    return target if target in EXAMPLES else str(Path(target).absolute())


def _code(target: str, working_dir: str | None, url: str) -> tuple[str, str | None, tuple[str, ...]]:
    """The job as the cluster sees it, what is sent along, and what is left out of that."""
    from orchestrator.examples import EXAMPLES

    if target in EXAMPLES and working_dir is None:
        return target, None, ()
    if working_dir is not None and not Path(working_dir).is_dir():
        raise ConfigurationError(f"--working-dir {working_dir}: there is no such directory")
    if target in EXAMPLES:
        entry, folder = target, Path(str(working_dir)).resolve()
    else:
        from orchestrator.jobs import JobSource

        path, colon, name = target.rpartition(":")
        if not colon or "/" in name or Path(target).is_file():
            path, name = target, ""
        JobSource.parse(target, {})  # complains about what is not there
        file = Path(path).resolve()
        _check_syntax(path)
        folder = file.parent if working_dir is None else Path(working_dir).resolve()
        if not file.is_relative_to(folder):
            raise ConfigurationError(
                f"{path} is not in --working-dir {working_dir}: the cluster would not find it"
            )
        entry = str(file.relative_to(folder)) + (f":{name}" if name else "")
    excluded = list(sub.EXCLUDED)
    if (local := Path(url)).is_absolute() and local != folder and local.is_relative_to(folder):
        excluded.append(f"/{local.relative_to(folder)}")
    return entry, str(folder), tuple(excluded)


def _check_syntax(path: str) -> None:
    """Raise UserCodeError for a file that no Python would read: before it is sent, rather than after."""
    try:
        compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise UserCodeError(f"{path}, line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise UserCodeError(f"{path}: {error}") from error


def _in_words(submission: Submission) -> str:
    plan = submission.plan()
    lines = [f"to {plan['address']}: {plan['name']}", f"entrypoint: {plan['entrypoint']}"]
    for key, value in plan["runtime_env"].items():
        lines.append(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    lines += [f"environment, by name: {', '.join(plan['env'])}"] if plan["env"] else []
    for key, value in plan["label_selector"].items():
        lines.append(f"coordinator on a node with {key}={value}")
    lines += [f"workers on nodes with {key}={value}" for key, value in submission.spot]
    everywhere = ", which all nodes must have" if submission.run_dir.startswith("/") else ""
    return "\n".join([*lines, f"run directory {submission.run_dir}{everywhere}"])


def _write(text: str) -> None:
    """The log of the job goes to standard error: standard output is for the result."""
    sys.stderr.write(text)
    sys.stderr.flush()


class _Submitter:
    """Submits a run, follows it, and submits it again where its supervisor has gone with the node."""

    def __init__(self, submission: Submission, *, insecure: bool) -> None:
        from storage.run_directory import RunDirectory
        from storage.store import open_store

        self.submission = submission
        self.run: RunDirectory = RunDirectory(open_store(submission.run_dir))
        self._insecure = insecure
        self._history: list[Restart] = []
        self._before = 0
        self._id = ""

    def how_to_come_back(self) -> str:
        """What to type to see the run, or to end it."""
        where = shlex.quote(f"{self.submission.address}#{self._id}")
        insecure = " --insecure" if self._insecure else ""
        return (
            f"to see it: holdfast status --watch {where}{insecure}, or holdfast logs -f {where}{insecure}; "
            f"to end it: holdfast stop {where}{insecure}"
        )

    def submit(self) -> str:
        """Submit the run. Raises RunAlive while it is at work, or a job for it is on the cluster."""
        from orchestrator.execution import check_at_rest

        server = self._server()
        server.check_free(self.submission.run_dir)
        check_not_awaited(self.run, self.run.store.url)  # by a supervisor, of another cluster perhaps
        check_at_rest(self.run, say)
        return self._submit(server)

    def _submit(self, server: JobServer) -> str:
        self._before = self.run.newest_attempt()
        self._id = server.submit(self.submission, self.submission.variables(os.environ))
        return self._id

    def _server(self) -> JobServer:
        from orchestrator.ray_jobs import JobServer

        return JobServer(self.submission.address, insecure=self._insecure)

    def follow(self) -> sub.Verdict:
        """Pass on what the run prints until it has ended for good; returns how."""
        relaunches = Relaunches(self.run, self.submission.retries)
        try:
            return self._until_over(relaunches)
        finally:
            relaunches.end()

    def _until_over(self, relaunches: Relaunches) -> sub.Verdict:
        while True:
            job = self._until_ended(relaunches)
            verdict = self._judge(job)
            if verdict.next is sub.Next.WATCH:
                url = shlex.quote(self.submission.run_dir)
                say(f"submitter: {verdict.reason}; to watch it: holdfast status --watch {url}")
            while verdict.next is sub.Next.WATCH:
                time.sleep(LOOK_S)
                verdict = self._judge(job)
            if verdict.next is sub.Next.END:
                return verdict
            if (end := self._again(verdict, relaunches)) is not None:
                return end

    def _until_ended(self, relaunches: Relaunches) -> Job | None:
        """Wait until Ray has the job down as ended, or knows nothing of it; or for a stop without Ray."""
        server, since, told = None, time.monotonic(), False
        follower = None
        try:
            while True:
                try:
                    server = server or self._server()
                    follower = follower or server.follow(self._id, _write)
                    job = server.job(self._id)
                except InfrastructureError as error:
                    server = None
                    if not told:
                        say(f"{error}; waiting for it up to {AWAY_S:.0f} s")
                    told = True
                    if self._is_over() or relaunches.is_stopped():  # the run directory knows
                        return None
                    if time.monotonic() - since > AWAY_S:
                        raise
                else:
                    since, told = time.monotonic(), False
                    if job is None or job.ended:
                        return job
                time.sleep(LOOK_S)
        finally:
            if follower is not None:
                follower.end()

    def _is_over(self) -> bool:
        try:
            status, _ = self._standing()
        except HoldfastError:
            return False
        return status in ("done", "interrupted")

    def _standing(self) -> tuple[str | None, str | None]:
        """Status and class of failure of an attempt that has begun since; None if there is none."""
        from orchestrator.status import read_status

        if self.run.newest_attempt() <= self._before:
            return None, None
        result, beat = read_status(self.run)
        return (result.status, result.failure) if beat else (None, None)

    def _judge(self, job: Job | None) -> sub.Verdict:
        """What to make of a job that has ended; a storage that does not answer is waited for."""
        since, told = time.monotonic(), False
        while True:
            try:
                return self._judged(job)
            except StorageError as error:
                if time.monotonic() - since > AWAY_S:
                    raise
                if not told:
                    say(f"{error}; waiting for it up to {AWAY_S:.0f} s")
                told = True
                time.sleep(LOOK_S)

    def _judged(self, job: Job | None) -> sub.Verdict:
        is_told = job is not None and job.tells
        alive = (
            not is_told and self.run.newest_attempt() > self._before and _is_alive(self.run, lambda _: None)
        )
        status, failure = self._standing()
        return sub.judge(job, status, failure, alive=alive)

    def _again(self, verdict: sub.Verdict, relaunches: Relaunches) -> sub.Verdict | None:
        """Submit the run again, if the restart policy allows it and nobody asks for its end; else the end."""
        from orchestrator.restart import Restart, decide
        from orchestrator.spec import RestartPolicy

        beat: dict[str, Any] = {}
        with suppress(StorageError):
            beat = self.run.newest_beat() or {}
        step = beat["step"] if type(beat.get("step")) is int else 0
        step = max([step, *(each.highest_step for each in self._history)])
        policy = RestartPolicy(max_restarts=self.submission.retries)
        decision = decide(policy, self._history, step, InfrastructureError(verdict.reason), random.random())
        say(f"submitter: {decision.reason}")
        if not decision.restart:
            return sub.Verdict(sub.Next.END, sub.AGAIN, decision.reason)
        self._history.append(Restart(step, delay_s=decision.delay_s, cause=verdict.reason))
        stopped = sub.Verdict(
            sub.Next.END, sub.STOPPED, "it was stopped while it waited to be submitted again"
        )
        if not relaunches.wait(decision.delay_s, verdict.reason):
            return stopped
        since = time.monotonic()
        while not relaunches.is_stopped():
            try:
                server = self._server()
                # Somebody else may have been quicker: their job is followed as ours.
                if (theirs := server.living(self.submission.run_dir)) is not None:
                    self._id = theirs.id
                else:
                    self._submit(server)
            except (InfrastructureError, StorageError, RunAlive) as error:
                if time.monotonic() - since > AWAY_S:
                    raise
                say(f"{error}")
                time.sleep(5 * LOOK_S)
            else:
                say(f"submitted again as {self._id}")
                return None
        return stopped


def end_submitted(
    address: str, *, checkpoint: bool, timeout_s: float, insecure: bool
) -> tuple[bool, RunDirectory]:
    """Stop a run on a cluster and wait until its job has ended; False if nothing of it was at work.

    A job that has not begun, or is about to begin again, is stopped too; the end of one that has no node
    yet is not waited for. What does not answer is stopped by way of Ray, unless it is to leave a checkpoint.
    Raises InfrastructureError if it goes on.
    """
    from orchestrator import requests
    from orchestrator.ray_jobs import find_submitted
    from storage.run_directory import RunDirectory
    from storage.store import open_store

    server, url = find_submitted(address, insecure=insecure)
    run = RunDirectory(open_store(url))
    deadline = time.monotonic() + timeout_s
    stopped = by_ray = False
    ended = None
    while True:
        job, left_s = server.living(url), max(0.0, deadline - time.monotonic())
        if job is None and not stopped and awaited(run) is not None:  # by its submitter
            return requests.stop(run, checkpoint=checkpoint, timeout_s=left_s), run
        waits = job is not None and job.status == "PENDING"
        at_work = requests.is_at_work(run.newest_beat()) and (not waits or _is_alive(run, say))
        if not by_ray and ended != run.newest_attempt() and at_work:
            try:
                stopped |= requests.stop(run, checkpoint=checkpoint, timeout_s=left_s)
                ended = run.newest_attempt()
            except InfrastructureError:
                if checkpoint or job is None:
                    raise
                say(f"{url} does not answer: its job {job.id} is stopped by way of Ray")
                server.stop(job.id)
                stopped = by_ray = True
                deadline = time.monotonic() + timeout_s
        elif job is None:
            return stopped, run
        elif waits:  # Ray ends it no sooner than it has a place for it
            server.stop(job.id)
            say(f"{job.id} waits for a node; Ray ends it as soon as there is one, or gives it up in minutes")
            return True, run
        elif not stopped and not checkpoint:
            server.stop(job.id)
            stopped = by_ray = True
        elif not stopped:  # it begins, or waits before it begins again
            run.request(STOP, {"checkpoint": checkpoint})
            stopped = True
        elif not left_s:
            raise InfrastructureError(f"the job {job.id} of {url} has not ended within {timeout_s:g} s")
        time.sleep(LOOK_S)


def _is_alive(run: RunDirectory, tell: Callable[[str], object]) -> bool:
    """Whether the coordinator that last gave a sign of life still works; `tell` as of `check_at_rest`."""
    from orchestrator.execution import check_at_rest

    try:
        check_at_rest(run, tell)
    except RunAlive:
        return True
    return False


def list_cluster(address: str, *, insecure: bool = False) -> Sequence[tuple[str, RunDirectory]]:
    """The runs that were submitted to a cluster, by name, the newest last."""
    from orchestrator.ray_jobs import JobServer
    from storage.run_directory import RunDirectory
    from storage.store import open_store

    runs = {job.run_dir: job.name or job.id for job in JobServer(address, insecure=insecure).jobs()}
    return [(name, RunDirectory(open_store(url))) for url, name in runs.items()]
