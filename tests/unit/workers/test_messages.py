"""Everything that travels between processes survives the way."""

from __future__ import annotations

import dataclasses
import pickle
import typing
from typing import Any

import pytest

from orchestrator import events
from storage.checkpoint import Part
from storage.errors import StorageError
from workers import messages as m

EXAMPLES: dict[Any, Any] = {
    "Compression": "zstd",
    "int": 3,
    "bool": True,
    "str": "text",
    "float": 0.5,
    "int | None": None,
    "Found | None": m.Found(1, 2, {"numpy": "2"}),
    "dict[str, Any]": {"a": [1, None]},
    "dict[str, float]": {"loss": 0.5},
    "Exception": StorageError("what, where, what to do"),
    "Part": Part({}, (), {"params": {0: "ab"}}),
    "float | None": 1.5,
    "Lost": m.Lost("worker", 1, 7, True, 3, "update"),
    "Stop | None": m.Stop(checkpoint=True),
    "tuple[Process, ...]": (m.Process("worker", 1, 2, 3, True),),
    "tuple[Member, ...]": (m.Member(0, "127.0.0.1:1", 0, 4),),
    "Plan": m.Plan(
        attempt=1, epoch=0, url="u", steps=3, checkpoint_every=None, validate_every=2, in_flight=2
    ),
}

ALL = [*typing.get_args(m.Command), *typing.get_args(m.Event), m.Plan, m.Progress]


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


def test_events_of_agents_are_told_from_those_of_the_coordinator() -> None:
    for kind in (*typing.get_args(m.Event), *typing.get_args(events.Event)):
        assert dataclasses.is_dataclass(kind)
    assert not {*typing.get_args(m.Event)} & {*typing.get_args(events.Event)}, "they come as Heard"
