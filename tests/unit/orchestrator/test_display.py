"""What the displays say of a job, and TensorBoard's events of it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from orchestrator.coordinator import Snapshot
from orchestrator.display import LineDisplay, Scene, describe
from orchestrator.events import Note
from orchestrator.notebook_display import html
from orchestrator.tensorboard import TensorBoardEvents
from storage.errors import ConfigurationError
from tests.tensorboard_events import values_in

if TYPE_CHECKING:
    from pathlib import Path

SNAPSHOT = Snapshot(50, 200, {"loss": 0.25, "accuracy": 0.5}, 2, 100.0)


def test_where_training_is_in_one_line() -> None:
    assert describe(SNAPSHOT) == "step 50 of 200: loss 0.25, accuracy 0.5, 100 steps/s, 2 workers, 0:02 left"


def test_a_scene_has_the_last_checkpoint_among_its_facts_and_not_among_its_events() -> None:
    scene = Scene()
    assert (scene.facts(), scene.left()) == (["starting"], "-:--")
    scene.snapshot = SNAPSHOT
    assert not scene.note(Note("checkpoint", "checkpoint of step 40 committed", {"step": 40}))
    assert not scene.note(Note("ready", "worker 0 is ready", {}))
    assert scene.note(Note("replaced", "worker 0 was killed and is replaced", {}))
    assert scene.facts()[-2:] == ["2 workers", "checkpoint 40"]
    assert [*scene.events] == ["worker 0 was killed and is replaced"]
    assert scene.left() == "0:02"


def test_what_an_event_says_is_text_in_a_notebook() -> None:
    scene = Scene()
    scene.note(Note("storage", "<script>alert(1)</script>", {}))
    shown = html(scene)
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_lines_have_each_event_and_outlive_their_reader() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream)
    display.note(Note("checkpoint", "checkpoint of step 40 committed", {}))
    display.note(Note("ended", "worker 0 ended", {}))
    assert stream.getvalue() == "checkpoint of step 40 committed\n"
    stream.close()
    display.note(Note("checkpoint", "checkpoint of step 60 committed", {}))


class Deaf:
    """An observer who does nothing but remember."""

    draws = False

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def note(self, note: Note) -> None:
        self.notes.append(note)

    def progress(self, snapshot: Snapshot) -> None: ...


def test_events_of_tensorboard_have_each_step_once_also_after_going_back(tmp_path: Path) -> None:
    for first, last in ((1, 5), (3, 8)):
        with TensorBoardEvents(str(tmp_path), Deaf()) as events:
            for step in range(first, last + 1):
                for _ in range(2):  # it is shown more often than there are steps
                    events.progress(Snapshot(step, 8, {"loss": step / first}, 2, 10.0))
            events.note(Note("evaluated", "", {"step": last, "metrics": {"val_loss": 0.5}}))
    found = values_in(tmp_path)
    losses = [found["loss", step] for step in range(1, 9)]
    assert losses == pytest.approx([1, 2, *(step / 3 for step in range(3, 9))])
    assert found["val_loss", 8] == 0.5
    assert ("val_loss", 5) not in found  # of the steps that were trained again
    assert found["steps_per_s", 4] == 10


def test_events_are_written_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--tensorboard s3://b/x: give a directory"):
        TensorBoardEvents("s3://b/x", Deaf())
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match=f"--tensorboard {bad}: "):
            TensorBoardEvents(str(bad), Deaf())


def test_a_disk_that_fails_costs_the_events_and_not_the_run(tmp_path: Path) -> None:
    deaf = Deaf()
    with TensorBoardEvents(str(tmp_path / "events"), deaf) as events:
        (tmp_path / "events").rmdir()
        (tmp_path / "events").touch()
        for step in (1, 2):
            events.progress(Snapshot(step, 8, {"loss": 0.5}, 2, 10.0))
    assert [note.kind for note in deaf.notes] == ["tensorboard"]
