"""What must hold of everything in `deploy/`, whatever it is for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.deploying import CLOSE_S, DEPLOY, FILES, PROJECT, documents, option_values, text
from workers.deadlines import LEAST_S, STORE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

YAML = [name for name in FILES if name.endswith(".yaml")]
SECRET = re.compile("TOKEN|SECRET|PASSWORD|ACCESS_KEY", re.IGNORECASE)
HARMLESS = r"(\$\{.*|[~/].*|unused|required|holdfast-ray-token)$"
"""What such a name may have as its value: a variable, a path, nothing of use, a setting, a Secret's name."""


def named_values(node: Any) -> Iterator[tuple[str, str]]:
    """Every text in a parsed document, with its key, or its name where name and value stand side by side."""
    if isinstance(node, list):
        for each in node:
            yield from named_values(each)
    elif isinstance(node, dict):
        if isinstance(node.get("value"), str):
            yield str(node.get("name", "value")), node["value"]
        for key, value in node.items():
            if isinstance(value, str):
                yield str(key), value
            else:
                yield from named_values(value)


def commands() -> list[str]:
    """Every complete command line of `holdfast run` in README.md."""
    joined = text("README.md").replace("\\\n", "")
    return re.findall(r"holdfast run [^'\n`]*--run-dir [^'\n`]*", joined)


def test_readme_tells_how_each_file_has_been_checked() -> None:
    _, _, table = text("README.md").partition("## What has been checked")
    told = {name for row in table.splitlines() if row[:3] == "| `" for name in re.findall(r"`([^`]+)`", row)}
    assert {*FILES} - told == {"README.md"}


def test_links_in_readme_lead_somewhere() -> None:
    readme = text("README.md")
    anchors = {
        re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^## (.+)$", readme, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (DEPLOY / target.partition("#")[0]).exists(), target


def test_every_submission_in_readme_is_one_that_holdfast_takes_and_leaves_time_for_a_checkpoint() -> None:
    joined = text("README.md").replace("\\\n", "")
    found = re.findall(r"holdfast submit [^'\n`]*--run-dir [^'\n`]*", joined)
    assert len(found) == 2
    for command in found:
        assert option_values(command)["grace_period"] >= STORE_S + LEAST_S["gradient"]


def test_what_readme_does_with_a_submitted_run_is_what_holdfast_takes() -> None:
    found = re.findall(
        r"^\$ holdfast (\w+) (.*)(http://127\.0\.0\.1:8265#train)$", text("README.md"), re.MULTILINE
    )
    assert [name for name, *_ in found] == ["status", "stop", "resume"]
    for name, options, where in found:
        assert option_values(f"holdfast {name} {options}{where}")["run_dir"] == where


def test_every_command_in_readme_is_one_that_holdfast_takes_and_leaves_time_for_a_checkpoint() -> None:
    assert len(commands()) == 3
    for command in commands():
        assert option_values(command)["grace_period"] >= STORE_S + LEAST_S["gradient"]


def test_docker_waits_for_longer_than_a_run_takes_to_stop() -> None:
    (stop_s,) = re.findall(r"docker stop -t (\d+)", text("README.md"))
    assert float(stop_s) > max(option_values(each)["grace_period"] for each in commands()) + CLOSE_S


def test_images_are_of_this_version() -> None:
    versions = {match for name in FILES for match in re.findall(r"holdfast:(\d[\w.]*)", text(name))}
    assert versions == {PROJECT["version"]}


@pytest.mark.parametrize("name", YAML)
def test_no_value_is_a_secret(name: str) -> None:
    for document in documents(name):
        assert document.get("kind") != "Secret"
        found = {key: value for key, value in named_values(document) if SECRET.search(key)}
        assert {key: value for key, value in found.items() if not re.match(HARMLESS, value)} == {}


def test_a_secret_would_be_found() -> None:
    document = {"env": [{"name": "RAY_AUTH_TOKEN", "value": "abc"}], "AWS_SECRET_ACCESS_KEY": "${KEY}"}
    found = {key: value for key, value in named_values(document) if SECRET.search(key)}
    assert [key for key, value in found.items() if not re.match(HARMLESS, value)] == ["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize("name", FILES)
def test_no_text_looks_like_a_key(name: str) -> None:
    """A literal token of 32 hexadecimal digits or more, a key of AWS, a private key."""
    assert not re.search(r"\b[0-9a-fA-F]{32,}\b|\bAKIA[0-9A-Z]{16}\b|PRIVATE KEY", text(name))
