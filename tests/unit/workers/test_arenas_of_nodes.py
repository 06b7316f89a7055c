"""Arenas of several nodes on one machine, and what lies beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from storage.layout import Layout, StateArray
from workers.arenas import arena_path, discard_arena, open_arena, parts_path
from workers.parts import Parts
from workers.state import Arena, ArenaSpec

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOLDFAST_SHM_DIR", str(tmp_path))
    return tmp_path


def opened(place: str = "place", slot: int = 0, step: int | None = None, num_slots: int = 2) -> Arena:
    spec = ArenaSpec(place, (StateArray("params", Layout.of({"w": (5,)})),), num_slots, 1)
    arena = open_arena(spec, slot)
    if step is not None:
        arena.commit(1, 1, step, 0, {})
    return arena


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nodes_of_one_machine_have_arenas_of_their_own(folder: Path) -> None:
    for slot in (0, 1, 2):
        opened(slot=slot, step=slot + 1).close()
    assert left(folder) == ["holdfast-place", "holdfast-place.1", "holdfast-place.2"]
    for slot in (0, 1, 2):
        arena = opened(slot=slot)
        commit = arena.committed()
        assert commit is not None
        assert commit.step == slot + 1
        arena.close()


def test_an_arena_of_a_slot_with_other_gradient_slots_is_replaced_and_its_state_kept() -> None:
    opened(slot=3, step=4).close()
    arena = opened(slot=3, num_slots=5)
    commit = arena.committed()
    assert commit is not None
    assert (commit.step, arena.path, len(arena.grads)) == (4, arena_path("place", 3), 5)
    arena.close()


def test_whoever_opens_an_arena_removes_the_sums_that_its_last_owner_exchanged(folder: Path) -> None:
    for slot in (0, 1):
        opened(slot=slot).close()
        Parts.create(parts_path(arena_path("place", slot)), 2, 5, 1)
    opened(slot=1).close()
    assert left(folder) == ["holdfast-place", "holdfast-place.1", "holdfast-place.parts"]


def test_what_a_run_has_left_on_a_machine_is_deleted_up_to_a_step_and_that_of_others_is_not(
    folder: Path,
) -> None:
    for slot, step in ((0, 5), (1, 6), (2, 7), (3, None)):
        opened(slot=slot, step=step).close()
        Parts.create(parts_path(arena_path("place", slot)), 2, 5, 1)
    for other in ("place2", "place-3", "plac"):
        opened(other, step=1).close()
    (folder / "holdfast-place.1.new").write_bytes(b"never finished")
    discard_arena("place", 6)
    assert left(folder) == [
        "holdfast-plac",
        "holdfast-place-3",
        "holdfast-place.1.new",
        "holdfast-place.2",
        "holdfast-place2",
    ]
