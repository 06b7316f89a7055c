"""What belongs to the table of faults: which tests run when, and how many kills each delivers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.integration.harness import KILLS

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what is marked `full` to `make chaos`, unless it is asked for by name."""
    if os.environ.get("HOLDFAST_CHAOS") == "full" or config.option.keyword or "::" in " ".join(config.args):
        return
    left = [item for item in items if item.get_closest_marker("full")]
    if left:
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)


@pytest.fixture(autouse=True)
def _recorded(request: pytest.FixtureRequest, record_property: pytest.RecordProperty) -> Iterator[None]:
    """Note the row and the kills of a test for the table."""
    before = KILLS["killed"]
    yield
    for mark in request.node.iter_markers("row"):
        record_property("row", mark.args[0])
    record_property("kills", KILLS["killed"] - before)
