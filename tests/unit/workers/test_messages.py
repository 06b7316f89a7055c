"""Everything that travels between processes survives the way."""

from __future__ import annotations

import dataclasses
import pickle
import typing
from typing import Any

import pytest

from storage.checkpoint import Part
from storage.errors import StorageError
from workers import messages as m
from workers.lines import Line

EXAMPLES: dict[Any, Any] = {
    "tuple[tuple[float, ...], ...]": ((1.0, 1700000000.0, 0.5),),
    "tuple[Line, ...]": (Line(1.5, 1, "worker", 0, 0, 77, 5, "stdout", "text", 12),),
    "Compression": "zstd",
    "Remainder": "pad",
    "int": 3,
    "bool": True,
    "str": "text",
    "float": 0.5,
    "float | None": 1.5,
    "Lost": m.Lost("worker", 0, 7, True, 3, "update"),
    "int | None": None,
    "Found | None": m.Found(1, 2, {"numpy": "2"}),
    "dict[str, Any]": {"a": [1, None]},
    "dict[str, float]": {"loss": 0.5},
    "Exception": StorageError("what, where, what to do"),
    "Part": Part({}, (), {"params": {0: "ab"}}),
    "Plan": m.Plan(attempt=1, epoch=0, url="u", steps=3, checkpoint_every=None, validate_every=2),
    "Stop | None": m.Stop(checkpoint=True),
    "tuple[Member, ...]": (m.Member(0, "host:1", 0, 2), m.Member(1, "host:2", 2, 4)),
    "tuple[Process, ...]": (m.Process("worker", 0, 1, 77, True),),
}

ALL = [*typing.get_args(m.Command), *typing.get_args(m.Event), m.Plan, m.Member, m.Process, m.Progress]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_message_survives_pickling_and_cannot_be_changed(kind: type) -> None:
    message = kind(**{field.name: EXAMPLES[field.type] for field in dataclasses.fields(kind)})
    copy = pickle.loads(pickle.dumps(message))
    assert type(copy) is kind
    for field in dataclasses.fields(kind):
        ours, theirs = getattr(message, field.name), getattr(copy, field.name)
        assert theirs == ours or (type(theirs), str(theirs)) == (type(ours), str(ours))
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(message, field.name, None)
    assert not hasattr(message, "__dict__"), "slots keep a misspelt field from being set"
