"""The page as HTML: with its parts beside it, as a server gives them out, or with all of it inside."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

PARTS = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "uplot.min.css": "text/css",
    "uplot.min.js": "text/javascript",
}
"""What the page consists of besides itself, and the type of each."""

_STYLES, _SCRIPTS = ("uplot.min.css", "page.css"), ("uplot.min.js", "page.js")


def part(name: str) -> str:
    """The content of a part."""
    return (files("orchestrator.page") / "static" / name).read_text(encoding="utf-8")


def served() -> str:
    """The page for a server, which asks it for what there is to show."""
    head = [f'<link rel="stylesheet" href="static/{name}">' for name in _STYLES]
    return _page("".join(head), "".join(f'<script src="static/{name}"></script>' for name in _SCRIPTS))


def report(view: dict[str, Any]) -> str:
    """The page with one run's view in it, which asks nobody for anything.

    Its own scripts are the only ones that a browser runs in it: their digests are in its policy.
    """
    scripts = [part(name) for name in _SCRIPTS]
    digests = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += "".join(f"<style>{part(name)}</style>" for name in _STYLES)
    data = json.dumps(view, allow_nan=False).replace("<", "\\u003c")
    body = f'<script type="application/json" id="view">{data}</script>'
    return _page(head, body + "".join(f"<script>{script}</script>" for script in scripts))


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _page(head: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Holdfast</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f'{head}</head><body><main id="page"><p class="quiet">reading…</p></main>{body}</body></html>'
    )
