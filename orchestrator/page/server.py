"""Gives the page out on loopback, to who knows the token."""

from __future__ import annotations

import os
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from orchestrator.page import document, view
from orchestrator.run_commands import run_below
from storage.errors import ConfigurationError, HoldfastError
from storage.run_directory import RunDirectory
from storage.store import open_store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "holdfast"
ENTER = "/enter/"
"""What comes before the token in the address that lets a browser in."""

HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""With any port: the way here may be one that ssh forwards."""

FRESH_S, FRESH_TIMES = 1.0, 5
"""A view is not made again before it is so old, or so many times as old as making it took, whoever asks."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Lets nobody through without the token, or by another name than that of this machine.

    Without the second, a page from elsewhere whose name is made to mean 127.0.0.1 could ask with the cookie.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app = app
        self._token = token
        self._cookie = f"{COOKIE}-{port}"  # browsers do not tell ports apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from starlette.requests import Request

        answer = self._refusal(Request(scope))
        await (answer or self._app)(scope, receive, _with_headers(send))

    def _refusal(self, request: Request) -> Response | None:
        if request.headers.get("host", "").rpartition(":")[0] not in HOSTS:
            return PlainTextResponse("this page has another name", 400)
        if request.url.path.startswith(ENTER):
            if not self._is_token(request.url.path.removeprefix(ENTER)):
                return PlainTextResponse("the token in the address is not that of this server", 403)
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
            return answer
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = request.cookies.get(self._cookie, "")
        if not self._is_token(given):
            return PlainTextResponse("open the address that `holdfast ui` has printed, with its token", 401)
        return None

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


def _with_headers(send: Send) -> Callable[[Any], Awaitable[None]]:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            own = {name.encode(): value.encode() for name, value in HEADERS.items()}
            message["headers"] = [*message.get("headers", ()), *own.items()]
        await send(message)

    return sending


class Source:
    """What there is to be shown of a run, or of those below a directory; read anew after a second."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, Any]] = {}  # until when it is fresh
        run = RunDirectory(open_store(url))
        self.is_run = run.identity() is not None or run.newest_beat() is not None
        if not self.is_run and "://" not in run.store.url and not os.path.isdir(run.store.url):
            raise ConfigurationError(f"there is no directory {url}: give a run, or a directory of some")

    def runs(self) -> Any:
        """The names and states of all runs; of the only one where it is a run."""
        return self._fresh("", self._list)

    def run(self, name: str) -> Any:
        """The view of a run; None if there is none of that name."""
        run = self._named(name)
        return None if run is None else self._fresh(f"run {name}", lambda: view.view_of(run, name))

    def _list(self) -> Any:
        if self.is_run:
            return {
                "single": True,
                "runs": [view.brief_of(self._name(), RunDirectory(open_store(self._url)))],
            }
        return {"single": False, "runs": view.list_of(self._url)}

    def _named(self, name: str) -> RunDirectory | None:
        if self.is_run:
            return RunDirectory(open_store(self._url)) if name == self._name() else None
        return run_below(self._url, name)

    def _name(self) -> str:
        return self._url.rstrip("/").rpartition("/")[2] or "run"

    def _fresh(self, key: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            until, value = self._kept.get(key, (-1.0, None))
            began = time.monotonic()
            if began > until:
                value = make()
                took = time.monotonic() - began
                self._kept[key] = (began + took + max(FRESH_S, FRESH_TIMES * took), value)
            return value


def application(url: str, token: str, port: int) -> ASGIApp:
    """The server of a run directory, or of a directory of some. ConfigurationError if there is none."""
    source = Source(url)

    def page(request: Request) -> Response:
        return HTMLResponse(document.served())

    def part(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in document.PARTS:
            return PlainTextResponse("there is no such file", 404)
        return Response(document.part(name), media_type=document.PARTS[name])

    def runs(request: Request) -> Response:
        return _answer(source.runs)

    def run(request: Request) -> Response:
        name = request.query_params.get("name", "")
        return _answer(lambda: source.run(name))

    routes = [
        Route("/", page),
        Route("/static/{name}", part),
        Route("/api/runs", runs),
        Route("/api/run", run),
    ]
    return Guard(Starlette(routes=routes), token, port)


def _answer(make: Callable[[], Any]) -> Response:
    try:
        found = make()
    except HoldfastError as error:
        return JSONResponse({"error": str(error)}, 503)
    return (
        JSONResponse({"error": "there is no run of that name"}, 404) if found is None else JSONResponse(found)
    )
