"""The command `holdfast`.

Exit codes: 0 done; 1 failed; 2 usage or configuration; 3 a check found a fault; 4 the run is alive elsewhere;
75 preempted or infrastructure, run again to resume; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from orchestrator import (
    configured,
    doctor,
    logs_command,
    metrics_command,
    page_commands,
    run_commands,
    submit_commands,
)
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
from orchestrator.ckpt import RunDir, ckpt
from orchestrator.configured import Config, Configured
from orchestrator.discretion import variables_of
from orchestrator.entry import STOPS, Interrupted, Terminated, interrupt, terminate
from orchestrator.model_commands import model
from orchestrator.result import Result
from orchestrator.spec import check_runtime
from orchestrator.submission import submitted_from
from orchestrator.terminal import harmless, put, say
from storage.errors import ConfigurationError, HoldfastError
from workers.output import keep_secret, redact_output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.coordinator import Observer
    from orchestrator.execution import Request
    from orchestrator.spec import Checkpoints, Job

EXIT_CODES = {"done": 0, "failed": 1, "preempted": 75, "interrupted": 130}

_TELL_OF_A_RUN = {"run", "status", "stop", "kill", "resume", "clone", "submit", "chaos"}
"""Commands whose JSON is a `Result`, when they fail, too."""

app = typer.Typer(
    name="holdfast",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train data-parallel models on Ray; kill anything, lose nothing, end in the same bits.",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        put(f"holdfast {version('holdfast')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command and exit with its code; a user's mistake is one line on standard error."""
    redact_output()
    try:
        if sys.argv[1:2] == ["run"]:  # until it has begun, and has handlers of its own
            signal.signal(signal.SIGTERM, terminate)
            signal.signal(signal.SIGINT, interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        code = app(standalone_mode=False)
    except HoldfastError as error:
        code = _fail(str(error), error.exit_code)
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            say(error.format_message())
            code = 2
        else:
            code = _fail(error.format_message(), 2)
    except (KeyboardInterrupt, Interrupted, typer.Abort):
        code = _stopped("interrupted")
    except Terminated:
        code = _stopped("preempted")
    sys.exit(code if isinstance(code, int) else 0)


def _stopped(status: str) -> int:
    _report(status)
    return EXIT_CODES[status]


def _fail(message: str, code: int) -> int:
    text = message.strip()
    _complain(text)
    _report("failed", text)
    return code


def _report(status: str, error: str | None = None) -> None:
    """The result of a command that did not get as far as one, where JSON is asked for."""
    if "--json" not in sys.argv:
        return
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    doc: dict[str, Any] = {"status": status, "error": error}
    if command in _TELL_OF_A_RUN:
        doc = Result(run_dir=_given_run_dir(command), status=status, error=error).to_json()
    put(json.dumps(doc))


def _complain(text: str) -> None:
    """Say what went wrong; a traceback of the user's code comes first."""
    head, _, last = text.strip().rpartition("\n")
    if head:
        say(head)
    say(f"holdfast: error: {last}")


def _given_run_dir(command: str) -> str:
    """The run directory that was given, for reports of commands that came to nothing."""
    asked = command_named(command)
    words = sys.argv[sys.argv.index(command) + 1 :]
    with suppress(TyperException, HoldfastError):
        return str(asked.make_context(command, words, resilient_parsing=True).params.get("run_dir") or "")
    return ""


def command_named(name: str) -> Any:
    """A command, with `make_context` to read its arguments by."""
    return typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]  # it is a group


@contextmanager
def _result_only() -> Iterator[None]:
    """Keep standard output for the result: what anybody prints meanwhile goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@app.command(cls=Configured)
def run(
    target: Target,
    run_dir: Annotated[
        str, typer.Option("--run-dir", metavar="URL", help="Where the run is kept: any fsspec URL.")
    ],
    workers: Annotated[
        str,
        typer.Option(
            "--workers",
            metavar="N | MIN:MAX",
            help="Workers to train with, or the fewest and most.",
            callback=check_workers_text,
        ),
    ],
    cpus_per_worker: CpusPerWorker = 1.0,
    runtime: Annotated[
        str, typer.Option(help="ray, or process: subprocesses of this machine.", callback=check_runtime)
    ] = "ray",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster; else RAY_ADDRESS, else a local Ray.")
    ] = None,
    insecure: Insecure = False,
    steps: Steps = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the job's.")] = None,
    paranoid: Annotated[
        float | None, typer.Option(metavar="P", help="Share of microbatches to compute twice and compare.")
    ] = None,
    settings: Parameters = None,
    nodes: Nodes = 1,
    standby: Annotated[
        int,
        typer.Option(
            metavar="N", help="Workers more per node, to take over when one dies; on Ray they take CPUs too."
        ),
    ] = 0,
    autoscale: Annotated[
        bool, typer.Option("--autoscale", help="Ask Ray's autoscaler for room for all workers.")
    ] = False,
    grace_period: Annotated[
        float | None,
        typer.Option(metavar="S", help="Seconds between SIGTERM and the end, if a checkpoint must fit in."),
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Go on although another seems to work.")
    ] = False,
    tensorboard: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write the metrics as TensorBoard's events, too.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> int:
    """Train a job, or go on with it: the same command again resumes.

    holdfast run digits --run-dir runs/digits --workers 2
    """
    from orchestrator import succession

    keep_secret(variables_of(parameters_of(settings)))
    if not succession.inherit():
        return succession.supervise()
    from orchestrator.display import make_display
    from orchestrator.execution import execute
    from orchestrator.tensorboard import TensorBoardEvents

    request = request_of(
        target=target,
        settings=settings,
        steps=steps,
        checkpoint_every=checkpoint_every,
        seed=seed,
        paranoid=paranoid,
        run_dir=run_dir,
        workers=workers,
        nodes=nodes,
        standby=standby,
        autoscale=autoscale,
        grace_period=grace_period,
        runtime=runtime,
        address=address,
        insecure=insecure,
        cpus_per_worker=cpus_per_worker,
        take_over=take_over,
    )
    with _result_only(), ExitStack() as shown:
        observer: Observer = shown.enter_context(make_display())
        if tensorboard is not None:
            observer = shown.enter_context(TensorBoardEvents(tensorboard, observer))
        result, error = execute(request, observer)
    if error is not None:
        _complain(str(error))
    put(json.dumps(result.to_json()) if as_json else summary(result))
    if error is not None:
        return error.exit_code if isinstance(error, HoldfastError) else 1
    return EXIT_CODES[result.status]


def request_of(
    *,
    target: str,
    settings: list[str] | None,
    steps: int | None,
    checkpoint_every: int | None,
    seed: int | None,
    paranoid: float | None,
    workers: str,
    grace_period: float | None,
    **others: Any,
) -> Request:
    """What the parameters of `run` ask for, with the job that its file makes; `others` are of `Request`.

    Raises ConfigurationError or UserCodeError.
    """
    from orchestrator.execution import Request
    from orchestrator.jobs import JobSource, by_file

    parameters = parameters_of(settings)
    keep_secret(variables_of(parameters))
    source = JobSource.parse(target, parameters)
    with _result_only():
        job = _overridden(source.load(), steps, checkpoint_every, seed, paranoid)
    return Request(
        job=job,
        source=by_file(source),
        workers=workers_of(workers),
        grace_s=grace_period,
        command=tuple(sys.argv[1:]),
        folder=os.getcwd(),
        submitted=submitted_from(os.environ),
        **others,
    )


def _overridden(
    job: Job, steps: int | None, checkpoint_every: int | None, seed: int | None, paranoid: float | None
) -> Job:
    changes: dict[str, Any] = {}
    if steps is not None:
        changes["steps"] = steps
    if seed is not None:
        changes["seed"] = seed
    if paranoid is not None:
        changes["paranoid"] = paranoid
    if checkpoint_every is not None:
        checkpoints: Checkpoints = replace(job.checkpoints, every_steps=checkpoint_every)
        changes["checkpoints"] = checkpoints
    return replace(job, **changes)


def summary(result: Result, *, with_error: bool = False) -> str:
    """How a run stands, for a person."""
    facts = [f"{result.status} at step {result.step}"]
    if result.loss is not None:
        facts.append(f"loss {result.loss:.4g}")
    facts += [f"{name} {value:.4g}" for name, value in result.metrics.items()]
    if result.steps_per_s:
        facts.append(f"{result.steps_per_s:.0f} steps/s")
    lines = [", ".join(facts)]
    costs = (
        f"restarts {result.restarts}, worker deaths {result.worker_deaths}, steps lost {result.steps_lost}"
    )
    lines.append(f"attempt {result.attempt}, {costs}")
    lines += costs_in_words(result)
    if result.error and with_error:
        lines.append(f"{result.failure or 'error'}: {result.error}")
    if result.state_digest:
        behind = result.digest_step not in (None, result.step)
        of = f" of step {result.digest_step}" if behind else ""
        lines.append(f"state digest{of} {result.state_digest}")
    lines.append(f"run directory {result.run_dir}")
    if result.next:
        lines.append(f"next: {result.next}")
    return harmless("\n".join(lines))


def costs_in_words(result: Result) -> list[str]:
    """What has happened to a run, and what that has cost it; nothing where nothing has."""
    from orchestrator.status import what_happened

    if not result.disturbances:
        return []
    facts = []
    if result.goodput is not None:
        facts.append(f"goodput {100 * result.goodput:.1f} %")
    if result.restarts_left is not None:
        facts.append(f"{result.restarts_left} restarts left")
    return [*([", ".join(facts)] if facts else []), *what_happened(result.disturbances)]


@app.command()
def chaos(
    target: Target,
    faults: Annotated[
        str,
        typer.Option(
            metavar="KINDS", help="Of worker, agent, writer, coordinator, node, stop and all, with commas."
        ),
    ],
    every: Annotated[float, typer.Option(metavar="S", help="Seconds between two faults, on average.")],
    steps: Annotated[int | None, typer.Option(help="Steps to train; faults come until the end.")] = None,
    count: Annotated[
        int | None, typer.Option(help="Faults to deliver; without --steps, as many steps as that takes.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Which faults strike whom, and when; else one is chosen, and told.")
    ] = None,
    workers: Annotated[str, typer.Option("--workers", metavar="N | MIN:MAX", help="As in `run`.")] = "2",
    nodes: Annotated[
        int | None, typer.Option(metavar="N", help="As in `run`; 2 if a node is to be lost, else 1.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="process, or ray.", callback=check_runtime)] = "process",
    run_dir: Annotated[
        str | None,
        typer.Option("--run-dir", metavar="URL", help="Where the runs are kept; else a temporary directory."),
    ] = None,
    settings: Parameters = None,
    as_json: AsJson = False,
) -> int:
    """Run a job under real faults, and tell what was lost.

    It is run undisturbed first; exit code 3 if something does not hold.

    holdfast chaos digits --faults worker,coordinator --every 1 --count 10
    """
    import secrets

    from orchestrator.chaos import Plan, kinds_of
    from orchestrator.chaos_run import Request, run_chaos
    from orchestrator.jobs import JobSource

    parameters = parameters_of(settings)
    keep_secret(variables_of(parameters))
    JobSource.parse(target, parameters)
    workers_of(workers)
    for option, value in (("--steps", steps), ("--count", count), ("--nodes", nodes)):
        if value is not None and value < 1:
            raise ConfigurationError(f"{option} {value}: give 1 or more")
    seed = secrets.randbelow(2**32) if seed is None else seed
    plan = Plan(kinds=kinds_of(faults), every_s=every, count=count, seed=seed)
    request = Request(
        target=target,
        settings=tuple(settings or []),
        workers=workers,
        nodes=nodes or (2 if "node" in plan.kinds and runtime == "process" else 1),
        runtime=runtime,
        steps=steps,
        run_dir=run_dir,
        plan=plan,
    )
    signal.signal(signal.SIGTERM, terminate)
    report = run_chaos(request, say)
    put(json.dumps(report.to_json()) if as_json else report.text())
    return 0 if report.holds else 3


@app.command()
def scale(
    run_dir: RunDir,
    workers: Annotated[str, typer.Argument(metavar="N | MIN:MAX", help="Workers to train with from now on.")],
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> int:
    """Give a run that is at work another number of workers.

    It goes on with the same bits.

    holdfast scale runs/digits 4
    """
    from orchestrator.requests import scale
    from orchestrator.status import open_run

    least, most = workers_of(workers)
    scale(open_run(run_dir, insecure=insecure), least, most)
    if as_json:
        put(json.dumps({"run_dir": run_dir, "workers": [least, most]}))
        return 0
    many = "1 worker" if most == 1 else f"{workers.replace(':', ' to ')} workers"
    put(f"{run_dir} trains with {many} from now on")
    return 0


@app.command()
def status(
    run_dir: RunDir,
    watch: Annotated[
        bool, typer.Option("--watch", help="Tell it again, where it has changed, until it ends.")
    ] = False,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> int:
    """Tell how a run stands, from its directory alone.

    holdfast status runs/digits --watch
    """
    from orchestrator.status import open_run, read_status

    run, told = open_run(run_dir, insecure=insecure), ""
    while True:
        result, beat = read_status(run)
        text = json.dumps(result.to_json()) if as_json else summary(result, with_error=True)
        if not as_json and beat and result.status == "running":
            text += f"\nprocess {beat['pid']} on {beat['host']}, {beat['steps']} steps to do"
        if text != told:
            wipe = "\033[H\033[J" if watch and not as_json and sys.stdout.isatty() else ""
            put(wipe + text)
            told = text
        if not watch or result.status != "running":
            return 0
        time.sleep(1.0)


@app.command()
def examples(as_json: AsJson = False) -> int:
    """List the jobs that are shipped with Holdfast.

    holdfast examples
    """
    from orchestrator.examples import EXAMPLES

    if as_json:
        put(json.dumps({name: description for name, (_, description) in EXAMPLES.items()}))
        return 0
    width = max(map(len, EXAMPLES))
    for name, (_, description) in EXAMPLES.items():
        put(f"{name:<{width}}  {description}")
    return 0


submit_commands.register(app)
run_commands.register(app)
logs_command.register(app)
metrics_command.register(app)
page_commands.register(app)
configured.register(app)
doctor.register(app)
app.add_typer(ckpt, name="ckpt")
app.add_typer(model, name="model")
