"""`holdfast doctor`: whether a machine, a place for runs and a Ray cluster are such as a run needs."""

from __future__ import annotations

import json
import os
import platform
import resource
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException, InvalidURL
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import typer

from orchestrator.ckpt import AsJson  # noqa: TC001 typer reads it
from orchestrator.submission import check_cluster, is_loopback
from orchestrator.terminal import put
from storage.errors import ConfigurationError, HoldfastError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from storage.store import Store

Level = Literal["ok", "warn", "fail"]

PACKAGES = ("holdfast", "ray", "numpy", "zarr", "fsspec", "pyarrow")
SHARED_MEMORY_NBYTES = 1 << 30
"""Less than this is little: containers have 64 MB unless more is asked for."""

DISK_NBYTES = 1 << 30
OPEN_FILES = 1024
SKEW_S = 5.0
"""Clocks that differ by more make times in journals, and rules of retention by hours, hard to read."""

_ANSWER_S = 10.0
_TOKEN_FILE = Path("~/.ray/auth_token")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it stands, and, unless it is well, what to do."""

    level: Level
    what: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<5} {self.what}: {self.text}" + (f": {self.advice}" if self.advice else "")


def machine() -> Iterator[Finding]:
    """Versions, shared memory, limits and disk of this machine."""
    yield _versions()
    yield _shared_memory()
    yield _open_files()
    yield disk(tempfile.gettempdir(), "temporary files")


def place(url: str) -> Iterator[Finding]:
    """What a place for runs does: credentials, exclusive creation, its clock, room. What is tried is removed.

    Stops at the first thing without which the others make no sense.
    """
    from storage.run_directory import RunDirectory
    from storage.store import open_store

    what = f"storage at {url}"
    made: list[Path] = []
    try:
        store = open_store(url)
        if (path := _local_path(store)) is not None:
            made = [each for each in (Path(path), *Path(path).parents) if not each.exists()]
        key = f"probe-{secrets.token_hex(8)}/object"
        before = time.time()
        store.write(key, (b"holdfast doctor",))
        after = time.time()
        try:
            read = store.read(key)
            at = store.last_change(key.partition("/")[0])
        finally:
            store.delete_directory(key.partition("/")[0])
        if read != b"holdfast doctor":
            yield Finding("fail", what, "what was written is not what is read", "use another place")
            return
        yield Finding("ok", what, f"objects can be written ({after - before:.2f} s), read and deleted")
        yield skew(what, at, before, after)
        if RunDirectory(store).probe_exclusive():
            yield Finding("ok", what, "of two that create the same object, one wins")
        else:
            text = "of two that create the same object, both win"
            advice = "start one coordinator at a time, or use another service"
            yield Finding("warn", what, text, advice)
    except HoldfastError as error:
        yield Finding("fail", what, str(error))  # which says what to do
        return
    if path is not None:
        yield disk(path, "checkpoints")
    for each in made:
        with suppress(OSError):
            each.rmdir()


def skew(what: str, at: float | None, before: float, after: float) -> Finding:
    """How far the clock of a store, by which an object was stored at `at`, is from this machine's."""
    if at is None:
        return Finding(
            "warn", what, "it does not say when objects were stored", "compare the clocks yourself"
        )
    away = max(before - at, at - after, 0.0)
    if away <= SKEW_S:
        return Finding("ok", what, "its clock and that of this machine agree")
    advice = "set the clock of this machine, as by NTP"
    return Finding("warn", what, f"its clock and that of this machine differ by {away:.0f} s", advice)


def disk(path: str, what_for: str) -> Finding:
    """The room on the disk of a path."""
    free = shutil.disk_usage(path).free
    level: Level = "ok" if free >= DISK_NBYTES else "warn"
    advice = "" if level == "ok" else "make room, or choose another disk"
    return Finding(level, f"disk for {what_for}", f"{free / 1e9:.1f} GB free at {path}", advice)


def cluster(address: str) -> Iterator[Finding]:
    """Whether a Ray cluster answers, is of the same version, and asks for a token."""
    what = f"Ray at {address}"
    if not address.startswith(("http://", "https://")):
        from orchestrator.ray_runtime import look

        try:
            yield Finding("ok", what, look(address))
        except HoldfastError as error:
            yield Finding("fail", what, str(error))
        yield from _risk(what, address)
        return
    try:
        status, answer = _ask(f"{address.rstrip('/')}/api/version", token=True)
        open_to_all = _ask(f"{address.rstrip('/')}/api/jobs/", token=False)[0] == 200
    except OSError as error:
        advice = "check address and port of the job server"
        yield Finding("fail", what, f"nothing answers there ({getattr(error, 'reason', error)})", advice)
        return
    except HTTPException as error:
        yield Finding("fail", what, f"what answers there speaks no HTTP ({error!r})", "check the port")
        return
    yield from server(what, address, status, answer, open_to_all=open_to_all)


def _risk(what: str, address: str) -> Iterator[Finding]:
    try:
        check_cluster(address, os.environ, insecure=False)
    except ConfigurationError as error:
        yield Finding("warn", what, str(error))


def server(what: str, address: str, status: int, answer: bytes, *, open_to_all: bool) -> Iterator[Finding]:
    """What the answer of a job server to the question for its version says."""
    host = urlsplit(address).hostname or ""
    if status in (401, 403):
        advice = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds the cluster's token"
        yield Finding("fail", what, "it refuses this token" if _token() else "it asks for a token", advice)
        return
    try:
        theirs = str(json.loads(answer)["ray_version"])
    except (ValueError, KeyError, TypeError):
        yield Finding("fail", what, f"no job server of Ray answers there (HTTP {status})", "check the port")
        return
    ours = version("ray")
    if theirs == ours:
        yield Finding("ok", what, f"version {theirs}, as here")
    else:
        yield Finding("fail", what, f"version {theirs}, and {ours} here", f"pip install 'ray=={theirs}'")
    if not open_to_all:
        yield Finding("ok", what, "it asks for a token")
    elif is_loopback(host):
        yield Finding("ok", what, "it asks for no token, and is reached from this machine alone")
    else:
        advice = "start Ray with RAY_AUTH_MODE=token"
        yield Finding("warn", what, "whoever reaches it can run what they like: it asks for no token", advice)
    if address.startswith("http://") and not is_loopback(host):
        advice = "use https://, or a tunnel such as ssh -L or kubectl port-forward"
        yield Finding("warn", what, "what is sent, the token too, can be read on the way", advice)


def doctor(
    run_dir: Annotated[
        str | None, typer.Argument(metavar="[RUN_DIR]", help="A place for runs: a path, or any fsspec URL.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster: of its job server, or host and port.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Look for what a run would lack here, and say what to do.

    It looks at this machine, at a place for runs, and at a cluster. Exit code 3 if something will not do.

    holdfast doctor s3://bucket/runs --address http://127.0.0.1:8265
    """
    checks: list[Callable[[], Iterator[Finding]]] = [machine]
    if run_dir is not None:
        checks.append(lambda: place(run_dir))
    if address is not None:
        checks.append(lambda: cluster(address))
    found = []
    for check in checks:
        for finding in check():
            found.append(finding)
            if not as_json:
                put(str(finding))
    if as_json:
        put(json.dumps([asdict(finding) for finding in found]))
    return 3 if any(finding.level == "fail" for finding in found) else 0


def register(app: typer.Typer) -> None:
    """Add `doctor` to the command line."""
    app.command()(doctor)


# -- parts --------------------------------------------------------------------------------------------------


def _versions() -> Finding:
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            return Finding("fail", "versions", f"{name} is not installed", f"pip install {name}")
    return Finding("ok", "versions", ", ".join(found))


def _shared_memory() -> Finding:
    from workers.processes import available_memory, shared_memory_directory

    directory = shared_memory_directory()
    what = f"shared memory at {directory}"
    try:
        free = available_memory(directory)
    except OSError as error:
        advice = "set HOLDFAST_SHM_DIR to a directory in memory"
        return Finding("fail", what, error.strerror or str(error), advice)
    text = f"{free / 1e9:.1f} GB free, which holds a state of {free / 3e9:.1f} GB"
    if free < SHARED_MEMORY_NBYTES:
        return Finding("warn", what, text, "give the container more, as by docker run --shm-size=8g")
    return Finding("ok", what, text)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft} at a time"
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        return Finding("warn", "open files", text, f"ulimit -n {OPEN_FILES} (the hard limit is {hard})")
    return Finding("ok", "open files", text)


def _local_path(store: Store) -> str | None:
    return None if "://" in store.url else store.url


def _token() -> str | None:
    """The token that Ray would send: that of the environment, or of its file."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _TOKEN_FILE).expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _ask(url: str, *, token: bool) -> tuple[int, bytes]:
    """Status and body of an answer, asked for with the token or without it. Raises OSError for none."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    found = _token() if token else None
    headers = {} if found is None else {"Authorization": f"Bearer {found}"}
    try:
        with urlopen(Request(url, headers=headers), timeout=_ANSWER_S) as answer:
            return answer.status, answer.read(1 << 16)
    except HTTPError as error:
        return error.code, b""
    except (ValueError, InvalidURL) as error:
        raise ConfigurationError(f"{url} is no URL: {error}") from error
