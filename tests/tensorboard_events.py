"""TensorBoard's events as TensorBoard takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensorboardX.proto.event_pb2 import Event

if TYPE_CHECKING:
    from pathlib import Path


def values_in(folder: Path) -> dict[tuple[str, int], Any]:
    """Scalars and histograms of a directory by tag and step: what is purged is gone, nothing stands twice."""
    found: dict[tuple[str, int], Any] = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event: Any = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log"):
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in found, f"{value.tag} stands twice at {event.step}"
                found[value.tag, event.step] = value.histo if value.HasField("histo") else value.simple_value
    return found
