"""Nodes that add up a step's gradients together, over a real exchange and in real memory."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import InfrastructureError, SharedMemoryTooSmall, Superseded
from storage.layout import Layout, StateArray
from workers.exchange import Exchange
from workers.links import Links
from workers.messages import Member
from workers.parts import Parts
from workers.reduction import Reduction, added, parts_of
from workers.schedule import tree_depth, tree_sum
from workers.state import Arena, ArenaSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

TOKEN = "secret"
LENGTH = 1000


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.002)


class Node:
    """A member: its exchange, its reduction, and what a worker would do."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.exchange = Exchange("127.0.0.1", TOKEN, lambda: None)
        self.address = self.exchange.open()
        self.errors: list[Exception] = []

    def open(self, folder: Path, members: list[Member], counts: list[int], epoch: int = 1) -> None:
        path = str(folder / f"{self.number}.parts")
        self.reduction = Reduction(self.exchange, path, members, self.number, (1, epoch), counts, LENGTH, 2)

    def listen(self) -> None:
        for each in self.exchange.take():
            if self.reduction.fetched(each.request) is not None and each.error is not None:
                self.errors.append(each.error)

    def wait(self) -> None:
        def quiet() -> bool:
            self.listen()
            return self.reduction.quiet

        until(quiet)

    def add_up(self, leaves: list[NDArray[np.float32]], sums: list[NDArray[np.float64]]) -> None:
        for part in self.reduction.own():
            self.reduction.memory.grads[part.slot][:] = total_of(leaves[part.low : part.high])
        mine = self.reduction.own()
        self.reduction.publish(sums[mine[0].low : mine[-1].high] if mine else [])

    def total(self) -> NDArray[np.float32]:
        slots, levels = self.reduction.finish()
        return total_of([self.reduction.memory.grads[slot] for slot in slots], levels)


def total_of(leaves: list[Any], levels: list[int] | None = None) -> NDArray[Any]:
    return tree_sum(
        leaves, list(np.empty((tree_depth(len(leaves)), *leaves[0].shape), leaves[0].dtype)), levels
    )


def leaves_of(step: int, count: int) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float64]]]:
    rng = np.random.default_rng((step, count))
    leaves = [(rng.standard_normal(LENGTH) * 10.0 ** rng.integers(-6, 7, LENGTH)) for _ in range(count)]
    return [leaf.astype(np.float32) for leaf in leaves], [rng.standard_normal((2, 2)) for _ in range(count)]


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    opened = [Node(number) for number in range(3)]
    yield opened
    for node in opened:
        node.exchange.close()


def begun(nodes: list[Node], folder: Path, bounds: tuple[int, ...], counts: list[int]) -> None:
    members = [Member(n.number, n.address, *bounds[i : i + 2]) for i, n in enumerate(nodes)]
    for node in nodes:
        node.open(folder, members, counts)


@pytest.mark.parametrize("bounds", [(0, 2, 3, 5), (0, 0, 5, 5), (0, 1, 4, 5)])
def test_all_nodes_finish_the_same_tree_step_after_step(
    nodes: list[Node], tmp_path: Path, bounds: tuple[int, ...]
) -> None:
    begun(nodes, tmp_path, bounds, [5, 3])
    for step in range(6):
        count = 3 if step % 3 == 2 else 5  # the last batch of an epoch is short
        leaves, sums = leaves_of(step, count)
        for i, node in enumerate(nodes):
            mine = node.reduction.begin(step, count)
            assert mine == range(min(bounds[i], count), min(bounds[i + 1], count))
        for node in nodes:
            node.add_up(leaves, sums)
        for node in nodes:
            node.wait()
            assert node.total().tobytes() == total_of(leaves).tobytes()
            assert node.reduction.totals().tobytes() == added(sums).tobytes()
            assert not node.errors


def test_who_is_a_step_behind_has_all_parts_from_who_is_ahead(nodes: list[Node], tmp_path: Path) -> None:
    begun(nodes, tmp_path, (0, 2, 3, 5), [5])
    leaves, sums = leaves_of(0, 5)
    for node in nodes:
        node.reduction.begin(0, 5)
    ahead, behind, lost = nodes
    behind.reduction.cancel()  # it heard of the loss before the others' parts had come
    behind.wait()
    for node in (ahead, behind, lost):
        node.add_up(leaves, sums)
    ahead.wait()
    expected = ahead.total()
    lost.exchange.close()
    ahead.reduction.begin(1, 5)  # what it has kept is kept until the next step is complete
    behind.errors.clear()
    assert not behind.reduction.replay(ahead.address, 1, 1), "that is another step"
    assert not behind.reduction.replay(ahead.address, 2, 0), "that is another epoch"
    assert behind.reduction.replay(ahead.address, 1, 0)
    behind.wait()
    assert not behind.errors
    assert behind.total().tobytes() == expected.tobytes()
    assert behind.reduction.totals().tobytes() == added(sums).tobytes()


def test_a_step_that_was_complete_can_be_made_again_without_asking_anybody(
    nodes: list[Node], tmp_path: Path
) -> None:
    """Its update was not: the workers died. What it has published stays published."""
    begun(nodes, tmp_path, (0, 2, 3, 5), [5])
    leaves, sums = leaves_of(0, 5)
    for node in nodes:
        node.reduction.begin(0, 5)
    for node in nodes:
        node.add_up(leaves, sums)
    for node in nodes:
        node.wait()
    expected = nodes[0].total()
    assert nodes[0].reduction.replay("127.0.0.1:1", 1, 0)
    assert nodes[0].reduction.quiet
    assert nodes[0].total().tobytes() == expected.tobytes()


def test_after_the_end_of_an_epoch_nothing_of_it_is_served_and_its_memory_is_gone(
    nodes: list[Node], tmp_path: Path
) -> None:
    begun(nodes, tmp_path, (0, 2, 3, 5), [5])
    leaves, sums = leaves_of(0, 5)
    nodes[0].reduction.begin(0, 5)
    nodes[0].add_up(leaves, sums)
    nodes[0].reduction.close()
    assert not os.path.exists(nodes[0].reduction.memory.path)
    nodes[1].reduction.begin(0, 5)
    until(lambda: (nodes[1].listen(), len(nodes[1].errors))[1] == 1)
    assert "withdrawn" in str(nodes[1].errors[0])
    nodes[1].reduction.cancel()
    nodes[1].wait()


def test_parts_cover_all_leaves_in_order_each_in_a_slot_of_its_own() -> None:
    members = [Member(0, "a", 0, 3), Member(1, "b", 3, 3), Member(2, "c", 3, 9)]
    for count in range(1, 10):
        parts = parts_of(members, count, 20)
        assert [part.low for part in parts] == [0, *(part.high for part in parts[:-1])]
        assert parts[-1].high == count
        assert [part.slot for part in parts] == [*range(20, 20 + len(parts))]
        assert all(part.member != 1 for part in parts)


# -- parts -----------------------------------------------------------------------------------------------


def test_parts_are_shared_private_and_reserved(tmp_path: Path) -> None:
    path = str(tmp_path / "x.parts")
    ours = Parts.create(path, 4, LENGTH, 2)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(path).st_blocks * 512 >= 4 * LENGTH * 4, "a sparse file would end in SIGBUS"
    theirs = Parts(path, 4, LENGTH, 2)
    for i in range(4):
        ours.grads[i][:] = i
        ours.sums[i][:] = -i
    assert [array[-1] for array in theirs.grads] == [0, 1, 2, 3]
    assert [array[1, 1] for array in theirs.sums] == [0, -1, -2, -3]
    assert all(array.ctypes.data % 64 == 0 for array in theirs.grads)
    ours.remove()
    ours.remove()
    assert theirs.grads[3][0] == 3, "mappings stay usable"


def test_parts_that_do_not_fit_are_refused_in_bytes(tmp_path: Path) -> None:
    with pytest.raises(SharedMemoryTooSmall, match=r"need \d+ bytes .* but \d+ bytes"):
        Parts.create(str(tmp_path / "x.parts"), 1 << 20, 1 << 30, 2)
    assert not (tmp_path / "x.parts").exists()


# -- links -----------------------------------------------------------------------------------------------


def arena_of(path: Path, value: float) -> Arena:
    arrays = (
        StateArray("params", Layout.of({"w": (LENGTH,)})),
        StateArray("slots/m", Layout.of({"w": (LENGTH,)})),
    )
    arena = Arena.create(str(path), ArenaSpec("place", arrays, 2, 1))
    for array in arena.buffers[1].values():
        array[:LENGTH] = value
    arena.commit(1, 1, 5, 1, {"metrics": {"loss": value}})
    return arena


def taken(links: Links, woken: threading.Event) -> list[Exception | None]:
    assert woken.wait(10)
    woken.clear()
    return [error for request, error in links.take() if links.fetched(request) is not None]


def test_a_state_is_copied_with_what_lies_beside_it(tmp_path: Path) -> None:
    woken = threading.Event()
    ours, theirs = Links("127.0.0.1", lambda: None), Links("127.0.0.1", woken.set)
    source, target = arena_of(tmp_path / "a", 1.5), arena_of(tmp_path / "b", 2.5)
    address = ours.open(TOKEN)
    assert ours.open(TOKEN) == address, "it is opened once"
    theirs.open(TOKEN)
    try:
        theirs.fetch_state(address, (1, 2, 5), target, 0)
        assert not theirs.quiet
        ours.publish_state((1, 2, 5), source, 1)  # it may be asked for before it is there
        assert taken(theirs, woken) == [None]
        assert theirs.quiet
        assert (target.buffers[0]["slots/m"] == source.buffers[1]["slots/m"]).all()
        assert target.aux(0) == {"metrics": {"loss": 1.5}}
        ours.begin(1, 3)
        theirs.fetch_state(address, (1, 2, 5), target, 0)
        (error,) = taken(theirs, woken)
        assert isinstance(error, Superseded)
        theirs.fetch_state(address, (1, 4, 5), target, 0)
        theirs.cancel()
        (error,) = taken(theirs, woken)
        assert isinstance(error, InfrastructureError)
    finally:
        ours.close()
        theirs.close()
        source.close()
        target.close()


def test_without_peers_there_is_nothing_to_hear_and_nothing_to_close() -> None:
    links = Links("127.0.0.1", lambda: None)
    links.begin(1, 1)
    assert links.take() == []
    assert links.quiet
    links.close()
