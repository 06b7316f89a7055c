"""What is submitted to a Ray cluster, and what is made of how it ended. Pure.

A submission is a small *supervisor job*: Ray's job server starts it, it starts the coordinator
(`holdfast run --address auto ...`), and starts it again where something else than the user's code ended it.
The submitter, while it lives, is the second line: it submits again where the supervisor went with its node.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

RUN_DIR, NAME, VERSION = "holdfast_run_dir", "holdfast_name", "holdfast_version"
"""Keys of a job's metadata."""

LABELS = "HOLDFAST_NODE_LABELS"
"""An environment variable of the coordinator's: labels of the nodes that may have workers, K=V,K=V."""

SUBMITTED = "HOLDFAST_SUBMITTED"
"""An environment variable of the coordinator's: the command and the folder of `holdfast submit`, as JSON."""

EXCLUDED = (".git", ".venv*", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache")
"""What of the working directory is not sent along; neither is what its .gitignore and .rayignore name."""

DONE, FAILED, USAGE, FAULT, ALIVE, AGAIN, STOPPED = 0, 1, 2, 3, 4, 75, 130
_FINAL = (DONE, FAILED, USAGE, FAULT, ALIVE, STOPPED)
_OWN_FAULT = ("RUNTIME_ENV_SETUP_FAILURE", "JOB_ENTRYPOINT_COMMAND_START_ERROR")
"""Ray's names of what fails because of what was submitted, such as packages that cannot be installed."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run to be submitted."""

    address: str
    """The URL of the cluster's job server."""

    run_dir: str
    """The URL of the run directory, in full."""

    command: tuple[str, ...]
    """The arguments of `holdfast` on the cluster: "run", ..."""

    name: str
    env: tuple[str, ...] = ()
    """Names of the environment variables that go along; their values are nowhere in here."""

    working_dir: str | None = None
    excludes: tuple[str, ...] = EXCLUDED
    pip: str | None = None
    retries: int = 10
    on_demand: tuple[tuple[str, str], ...] = ()
    """Labels of the node that has the coordinator; without any it is the head."""

    spot: tuple[tuple[str, str], ...] = ()
    """Labels of the nodes that have the workers; without any, all nodes."""

    words: tuple[str, ...] = ()
    """The words of the command line that asks for it, which are kept for `holdfast resume`."""

    folder: str = ""
    """Where that was given."""

    def argv(self, package: str) -> list[str]:
        """The command line of the supervisor job. `package` is where its `variables` are."""
        words = ["python", "-m", "orchestrator.supervision", "--retries", str(self.retries)]
        words += [f"--environment={package}"]
        words += [f"--label={key}={value}" for key, value in self.spot]
        return [*words, "--", *self.command]

    def entrypoint(self, package: str) -> str:
        """`argv`, quoted for the shell that Ray starts."""
        return shlex.join(self.argv(package))

    def runtime_env(self) -> dict[str, Any]:
        """What Ray is to bring along: code and packages, no variables (Ray shows those to everybody)."""
        found: dict[str, Any] = {}
        if self.working_dir is not None:
            found |= {"working_dir": self.working_dir, "excludes": list(self.excludes)}
        if self.pip is not None:
            found["pip"] = self.pip
        return found

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What is uploaded for the supervisor job: values by name, and whence it was submitted."""
        told = json.dumps({"command": self.words, "folder": self.folder})
        return {**{name: environment[name] for name in self.env}, SUBMITTED: told}

    def metadata(self, version: str) -> dict[str, str]:
        """What the job server remembers of the job, by which runs are found."""
        return {RUN_DIR: self.run_dir, NAME: self.name, VERSION: version}

    def plan(self) -> dict[str, Any]:
        """What would be submitted, for `--dry-run`."""
        return {
            "address": self.address,
            "run_dir": self.run_dir,
            "name": self.name,
            "entrypoint": self.entrypoint("PACKAGE"),
            "runtime_env": self.runtime_env(),
            "env": list(self.env),
            "label_selector": dict(self.on_demand),
        }


def submitted_from(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Command and folder of the `holdfast submit` that this process is part of; None if of none."""
    try:
        found = json.loads(environment.get(SUBMITTED, ""))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def check_address(address: str, environment: Mapping[str, str], *, insecure: bool) -> str:
    """The URL of a job server, without a slash at its end.

    Raises ConfigurationError if it is none, or if whoever listens on the way could run code there: plain
    HTTP to another machine, with no token.
    """
    parts = urlsplit(address)
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{address}: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(
            f"{address!r} is no cluster's address: give the URL of its job server, such as http://127.0.0.1:8265"
        )
    if parts.username or parts.password:
        raise ConfigurationError(
            "the cluster's address holds a name or a password: give a token in RAY_AUTH_TOKEN_PATH"
        )
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{address}: give the cluster's address without ? and #")
    token = uses_token(environment)
    if parts.scheme == "http" and not is_loopback(host) and not token and not insecure:
        raise _unprotected(
            address, environment, "use a tunnel (ssh -L 8265:localhost:8265 HOST) or https, or say --insecure"
        )
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def check_cluster(address: str, environment: Mapping[str, str], *, insecure: bool) -> None:
    """Raise ConfigurationError for another machine's HOST:PORT, where neither tokens nor TLS are used.

    Whoever listens on the way, or is there in the cluster's place, could run code here. What is no HOST:PORT
    is this machine, or the cluster that it is a part of.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or is_loopback(host.strip("[]")) or insecure:
        return
    if not uses_token(environment) and environment.get("RAY_USE_TLS", "").lower() not in ("1", "true"):
        raise _unprotected(
            address, environment, "use --address auto on a machine of the cluster, or say --insecure"
        )


def _unprotected(address: str, environment: Mapping[str, str], other_ways: str) -> ConfigurationError:
    hint = "RAY_AUTH_TOKEN is set, but RAY_AUTH_MODE=token is not: " if _has_token(environment) else ""
    return ConfigurationError(
        f"{address} is another machine, without encryption or authentication: {hint}start the cluster with "
        f"RAY_AUTH_MODE=token and set that and RAY_AUTH_TOKEN_PATH here, {other_ways}"
    )


def is_address(text: str) -> bool:
    """Whether this is where a job server is, and not where a run is."""
    return text.startswith(("http://", "https://"))


def uses_token(environment: Mapping[str, str]) -> bool:
    """Whether Ray sends a token with every request."""
    return environment.get("RAY_AUTH_MODE", "").lower() == "token"


def _has_token(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH"))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by a name that others cannot have."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_of(given: Iterable[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """The names that `--env` gives. Raises ConfigurationError for a value, or a variable that is not set."""
    names = []
    for name in given:
        if "=" in name:
            raise ConfigurationError(
                f"--env {name.partition('=')[0]}=...: give the name alone, and the value in the environment: "
                "command lines are read by everybody"
            )
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"--env {name}: this is not the name of an environment variable")
        if name.startswith("RAY_"):
            raise ConfigurationError(f"--env {name}: Ray sets its own variables on the cluster")
        if name not in environment:
            raise ConfigurationError(f"--env {name}: it is not set here")
        names.append(name)
    return tuple(dict.fromkeys(names))


def labels_of(option: str, given: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Labels of nodes, from LABEL=VALUE. Raises ConfigurationError."""
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals and value) or "," in text:
            raise ConfigurationError(f"{option} {text}: give LABEL=VALUE, as in ray.io/market-type=spot")
        found[key] = value
    return tuple(found.items())


@dataclass(frozen=True, slots=True)
class Job:
    """A job of Holdfast's on a cluster, as Ray tells of it."""

    id: str
    run_dir: str
    name: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""

    exit_code: int | None = None
    message: str = ""
    error: str = ""
    """What kind of failure it was, by Ray's name for it."""

    @property
    def ended(self) -> bool:
        """Whether Ray has it down as ended; the run directory may know better."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")

    @property
    def tells(self) -> bool:
        """Whether the supervisor ended by itself, after the run; the shell says 128 + N of one killed."""
        return self.exit_code is not None and self.exit_code in (*_FINAL, AGAIN)


def next_id(prefix: str, jobs: Sequence[Job]) -> str:
    """The name of the next job of a run. Two submitters choose the same, and Ray refuses the second."""
    numbers = [0]
    for job in jobs:
        number = job.id.removeprefix(f"{prefix}-")
        if job.id != number and number.isdigit():
            numbers.append(int(number))
    return f"{prefix}-{max(numbers) + 1}"


def find_run(jobs: Iterable[Job], name: str, address: str) -> str:
    """The run directory of the run of this name; without a name, of the only one.

    Raises ConfigurationError that lists what there is.
    """
    jobs, runs = [*jobs], dict[str, set[str]]()
    for job in jobs:
        runs.setdefault(job.run_dir, set()).update((job.name, job.id))
    found = [run for run, names in runs.items() if not name or name in names or name == run]
    if len(found) == 1:
        return found[0]
    if not runs:
        raise ConfigurationError(f"no run was submitted to {address}")
    known = ", ".join(sorted({job.name or job.id for job in jobs}))
    which = f"are {len(found)} runs" if found else f"is no run {name!r}"
    which += f" called {name!r}" if found and name else ""
    raise ConfigurationError(
        f"there {which} at {address}: give {address}#NAME, of {known}, or the run directory"
    )


class Next(Enum):
    """What the submitter does about a job that has ended."""

    END = "end"
    WATCH = "watch"
    AGAIN = "again"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, the exit code if that is to end, and the reason in words."""

    next: Next
    code: int
    reason: str


def judge(job: Job | None, status: str | None, failure: str | None, *, alive: bool) -> Verdict:
    """What to make of a job that Ray has down as ended, or does not know (None).

    `status` and `failure` are what the run directory tells of an attempt that began since the job was
    submitted, None if there is none; `alive` says that its coordinator gives signs of life. The run directory
    goes before what Ray says.
    """
    if alive:
        return Verdict(Next.WATCH, 0, "the supervisor job is gone, and the run goes on")
    if job is not None and job.exit_code in _FINAL:
        return Verdict(Next.END, job.exit_code, job.message)
    if status == "done":
        return Verdict(Next.END, DONE, "")
    if status == "interrupted":
        return Verdict(Next.END, STOPPED, "it was stopped")
    if status == "failed" and failure not in (None, "infrastructure", "preemption"):
        return Verdict(Next.END, FAILED, failure or "")
    if job is not None and job.status == "STOPPED":
        return Verdict(Next.END, STOPPED, "the job was stopped by way of Ray")
    if job is not None and job.exit_code == AGAIN and status == "failed":
        return Verdict(Next.END, AGAIN, "the supervisor job has used up its restarts")
    if job is None:
        return Verdict(Next.AGAIN, AGAIN, "the cluster has been started anew and knows nothing of the job")
    if status is None and job.exit_code is not None and 0 < job.exit_code < 128 and not job.tells:
        return Verdict(Next.END, FAILED, f"the job ended with exit code {job.exit_code} before it began")
    if status is None and job.error in _OWN_FAULT:
        return Verdict(Next.END, FAILED, job.message)
    how = "was preempted" if status == "preempted" else "was lost with its node or killed"
    why = f" ({job.message})" if job.error and job.message else ""
    return Verdict(Next.AGAIN, AGAIN, f"the supervisor job {how}{why}")


def goes_on(code: int, *, stopped: bool, again: bool = False) -> str | None:
    """Why `holdfast run` is started again after it ended so (negative: by a signal); None if it is not.

    `again` says that it was started before: what was good enough then is not at fault now.
    """
    if stopped:
        return None
    if code < 0:
        return f"the run was killed by signal {-code}"
    if code == USAGE and again:
        return "the cluster or the place of the run could not be used, as it could before"
    return "the infrastructure failed, or the node was taken away" if code == AGAIN else None
