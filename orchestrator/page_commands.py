"""The commands `holdfast ui` and `holdfast report`: a run in a browser."""

from __future__ import annotations

import json
import os
import secrets
import socket
from typing import Annotated

import typer

from orchestrator.arguments import Insecure  # noqa: TC001 typer reads it
from orchestrator.ckpt import AsJson, RunDir  # noqa: TC001 typer reads them
from orchestrator.submission import is_address
from orchestrator.terminal import put, say
from storage.errors import ConfigurationError


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(ui)
    app.command()(report)


def ui(
    directory: Annotated[
        str, typer.Argument(metavar="RUN_DIR | PARENT_DIR", help="A run, or a directory of some: any URL.")
    ],
    port: Annotated[int, typer.Option(metavar="N", help="Port on 127.0.0.1; 0 for any that is free.")] = 0,
    as_json: AsJson = False,
) -> int:
    """Show runs on a page in the browser, which follows them.

    Ctrl-C ends the page, not the runs.

    holdfast ui runs
    """
    if is_address(directory):
        raise ConfigurationError(
            f"{directory}: the page is of a directory: give the one that `holdfast list` or `status` names"
        )
    try:
        import uvicorn

        from orchestrator.page.server import ENTER, application
    except ImportError as exc:
        raise ConfigurationError("the page needs packages: pip install 'holdfast[ui]'") from exc
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as exc:
        raise ConfigurationError(f"--port {port}: {getattr(exc, 'strerror', None) or exc}") from exc
    with listener:
        token, port = secrets.token_urlsafe(24), listener.getsockname()[1]
        app = application(directory, token, port)
        url = f"http://127.0.0.1:{port}{ENTER}{token}"
        put(json.dumps({"url": url}) if as_json else url)
        say("open this address; Ctrl-C ends the page, not the runs")
        config = uvicorn.Config(app, log_level="error", lifespan="off", server_header=False, ws="none")
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def report(
    run_dir: RunDir,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The file: a path, or any URL.")],
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> int:
    """Write the page of a run as one file.

    The file needs nothing else: no network, no server.

    holdfast report runs/digits --out report.html
    """
    from orchestrator.page import document, view
    from orchestrator.status import open_run
    from storage.files import file_at

    run = open_run(run_dir, insecure=insecure)
    name = os.path.basename(run.store.url.rstrip("/"))
    data = document.report(view.view_of(run, name)).encode()
    file_at(out).write(data)
    put(json.dumps({"out": out, "nbytes": len(data)}) if as_json else f"{out}: {len(data)} bytes")
    return 0
