"""Ray's job server: submitting, finding and following jobs. Beside `ray_runtime` the only module with Ray.

What it raises is translated here. Tokens are Ray's own business: with RAY_AUTH_MODE=token it takes them from
RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, and sends them with each request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import threading
import time
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from orchestrator.submission import NAME, RUN_DIR, Job, check_address, find_run, next_id
from storage.errors import ConfigurationError, InfrastructureError, MissingExtra, RunAlive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from orchestrator.submission import Submission

_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_PACKAGE = "holdfast_environment_{}.zip"
_TOO_LARGE = re.compile(r"Maximum request body size|exceeds the maximum size")
AFTER_END_S = 3.0
"""Seconds that the rest of a log may take to come, once its job has ended."""


class JobServer:
    """A cluster's job server. Raises ConfigurationError if it cannot be used, when it is made."""

    def __init__(self, address: str, *, insecure: bool = False) -> None:
        self.address = check_address(address, os.environ, insecure=insecure)
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise _missing() from error
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with _without_addresses(), _translated(self.address):
            self._client: Any = JobSubmissionClient(self.address)

    def jobs(self) -> list[Job]:
        """The jobs that Holdfast has submitted there, oldest first.

        Raises InfrastructureError if the server does not answer.
        """
        with _translated(self.address):
            found = self._client.list_jobs()
        mine = [each for each in found if (each.metadata or {}).get(RUN_DIR) and each.submission_id]
        return [_job(each) for each in sorted(mine, key=lambda each: each.start_time or 0)]

    def job(self, id_: str) -> Job | None:
        """A job; None if the server knows of none. Raises InfrastructureError if it does not answer."""
        return next((job for job in self.jobs() if job.id == id_), None)

    def living(self, run_dir: str, jobs: Iterable[Job] | None = None) -> Job | None:
        """The job of a run, among `jobs` or all, that Ray does not have down as ended; None for none."""
        jobs = self.jobs() if jobs is None else jobs
        return next((job for job in jobs if job.run_dir == run_dir and not job.ended), None)

    def check_free(self, run_dir: str, jobs: Iterable[Job] | None = None) -> None:
        """Raise RunAlive while a job of a run is on the cluster, or among `jobs` of it."""
        if (job := self.living(run_dir, jobs)) is not None:
            raise RunAlive(
                f"{run_dir} was submitted to {self.address} as {job.id}, which is {job.status}: stop it "
                f"first with `holdfast stop {shlex.quote(f'{self.address}#{job.id}')}`"
            )

    def stop(self, id_: str) -> None:
        """Have Ray stop a job: SIGTERM, and seconds later SIGKILL. Its end is not waited for."""
        with _translated(self.address):
            self._client.stop_job(id_)

    def submit(self, submission: Submission, variables: Mapping[str, str]) -> str:
        """Submit the supervisor job; returns its id.

        `variables` are the submission's, with their values; they are uploaded apart, and the job takes them
        away. Raises RunAlive if another has submitted the same run, were it just now.
        """
        digest = hashlib.blake2b(submission.run_dir.encode(), digest_size=6).hexdigest()
        jobs = self.jobs()
        self.check_free(submission.run_dir, jobs)
        id_ = next_id(f"holdfast-{digest}", jobs)
        package = self._upload(variables)
        selector = dict(submission.on_demand)
        try:
            with _translated(self.address):
                self._client.submit_job(
                    entrypoint=submission.entrypoint(package),
                    submission_id=id_,
                    runtime_env=submission.runtime_env(),
                    metadata=submission.metadata(version("holdfast")),
                    **({"entrypoint_label_selector": selector} if selector else {}),
                )
        except (ConfigurationError, InfrastructureError) as error:
            if "already exists" in str(error):
                raise RunAlive(f"{submission.run_dir} has just been submitted by another as {id_}") from None
            if _TOO_LARGE.search(str(error)) and submission.working_dir is not None:
                raise ConfigurationError(_too_large(submission.working_dir, submission.excludes)) from error
            raise
        return id_

    def _upload(self, variables: Mapping[str, str]) -> str:
        name = _PACKAGE.format(secrets.token_hex(16))
        with _translated(self.address):
            answer = self._client._do_request(
                "PUT", f"/api/packages/gcs/{name}", data=json.dumps(dict(variables)).encode()
            )
        if answer.status_code != 200:
            raise InfrastructureError(f"{self.address} does not take the environment: {answer.status_code}")
        return name

    def follow(self, id_: str, write: Callable[[str], None]) -> Follower:
        """Pass on what a job prints, from the first line on, while this lives."""
        return Follower(self._client, id_, write)


class Follower:
    """Passes on the log of a job, in a thread of its own."""

    def __init__(self, client: Any, id_: str, write: Callable[[str], None]) -> None:
        self._client, self._id, self._write = client, id_, write
        self._passed = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self, wait_s: float = AFTER_END_S) -> None:
        """Wait a while for the rest, and stop."""
        self._thread.join(wait_s)
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                asyncio.run(self._tail())
            except Exception:  # noqa: BLE001 who follows a log looks at the job's state elsewhere
                time.sleep(1.0)
            else:
                return

    async def _tail(self) -> None:
        seen = 0
        async for text in self._client.tail_job_logs(self._id):
            if self._ended.is_set():
                return
            seen += len(text)
            if (new := seen - self._passed) > 0:  # after a new connection the log begins anew
                self._write(text[-new:])
                self._passed = seen


def find_submitted(address: str, *, insecure: bool = False) -> tuple[JobServer, str]:
    """The job server of `http://HOST:PORT[#NAME]`, and the run's directory. Raises ConfigurationError."""
    url, _, name = address.partition("#")
    server = JobServer(url, insecure=insecure)
    return server, find_run(server.jobs(), name, server.address)


def take_environment(package: str) -> dict[str, str]:
    """On the cluster: the variables that were uploaded for this job, which are removed there.

    Raises InfrastructureError if they are not there.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # it is compiled

    address, key = os.environ.get("RAY_ADDRESS", ""), f"gcs://{package}".encode()
    with _translated(address):
        client = GcsClient(address=address)
        data = client.internal_kv_get(key, None, timeout=30)
        if data is not None:
            client.internal_kv_del(key, False, None, timeout=30)
    if data is None:
        raise InfrastructureError("the environment variables of this job are gone: submit it again")
    found: dict[str, str] = json.loads(data)
    return found


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id,
        run_dir=metadata[RUN_DIR],
        name=metadata.get(NAME, ""),
        status=str(getattr(details.status, "value", details.status)),
        exit_code=details.driver_exit_code,
        error=str(getattr(details.error_type, "value", details.error_type) or ""),
        message=(details.message or "").strip().partition("\n")[0].partition(", last available logs")[0],
    )


def _too_large(folder: str, excludes: Sequence[str]) -> str:
    """That Ray does not take a package of this folder, and what in it is large."""
    from ray._private.runtime_env import packaging

    sizes: dict[str, int] = {}

    def see(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(folder))] = path.stat().st_size

    with suppress(Exception):  # it is Ray's own, and may change; the sizes are only a help
        packaging._dir_travel(Path(folder), [packaging._get_excludes(Path(folder), [*excludes])], see, True)
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
    shown = ", ".join(f"{name} ({decimal(sizes[name])})" for name in largest)
    total = f" with {decimal(sum(sizes.values()))}" if sizes else ""
    return (
        f"{folder}{total} is more than the cluster's job server takes: name what is not needed in its "
        ".gitignore or .rayignore, or give another --working-dir; data belongs where the nodes can read it"
        + (f"; the largest: {shown}" if shown else "")
    )


def _missing() -> MissingExtra:
    return MissingExtra("Ray's job server needs more of Ray: pip install 'holdfast[submit]'")


@contextmanager
def _without_addresses() -> Iterator[None]:
    """The variables that Ray would take an address from although one is given, and was checked."""
    kept = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def _translated(address: str) -> Iterator[None]:
    try:
        yield
    except (ConfigurationError, InfrastructureError):
        raise
    except Exception as error:
        text = str(error).strip()
        first = text.partition("\n")[0].rstrip(".")
        if type(error).__name__ == "AuthenticationError" or "Authentication" in first:
            reason = first.partition(". ")[0].rstrip(".")
            raise ConfigurationError(
                f"{address} does not let us in ({reason}): set RAY_AUTH_MODE=token, and the "
                "cluster's token in RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
            ) from error
        if "requires the ray[default]" in text or "ray[default]" in first:
            raise _missing() from error
        if isinstance(error, ValueError | TypeError):
            raise ConfigurationError(f"Ray does not take this: {first}") from error
        if "already exists" in text:
            first = "it already exists"
        raise InfrastructureError(
            f"the job server at {address} does not answer ({first}): check the address, which is that of "
            "Ray's dashboard (port 8265, if not told otherwise)"
        ) from error
