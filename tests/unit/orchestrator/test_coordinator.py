"""What the coordinator does when time passes, with a clock and a cluster that are played."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.coordinator import GATHER_S, POLL_S, WAITING_S, Coordinator, Settings
from orchestrator.events import Heard, Note, Place, Status
from orchestrator.ledger import Ledger, Meter, Pace
from orchestrator.records import Records
from orchestrator.spec import Job
from storage.errors import InfrastructureError
from storage.layout import Layout, StateArray
from storage.run_directory import RunDirectory
from storage.testing import MemoryStore
from workers import messages as m

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.events import Event

DESCRIPTION: dict[str, Any] = {
    "arrays": [StateArray("params", Layout.of({"w": (4,)})).to_json()],
    "metrics": [],
    "engine": {},
    "optimizer": {},
    "data": {},
    "samples": 40,
    "callbacks": None,
    "fingerprint": {},
}


@dataclass(eq=False)
class Cluster:
    """A runtime with two nodes for a worker each; whoever waits for its events makes its time pass.

    Only the agents of `there` ever answer. No node can copy what another one has.
    """

    there: tuple[int, ...]
    until_s: float
    now: float = 1000.0
    told: list[tuple[float, int, m.Command]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    workers: dict[int, int] = field(default_factory=dict)

    def places(self, wanted: int) -> Mapping[int, Place]:
        return {0: Place(1), 1: Place(1)}

    def start(self, node: int, role: str, rank: int, generation: int) -> None:
        if role == "worker":
            self.workers[node] = rank

    def exchange(
        self, attempt: int, commands: Sequence[tuple[int, m.Command]], timeout_s: float
    ) -> tuple[list[Event], Mapping[int, m.Progress]]:
        self.told += [(self.now, node, command) for node, command in commands]
        heard: list[Event] = [
            Heard(node, event)
            for node, command in commands
            if node in self.there
            for event in self.answers(node, command)
        ]
        if not heard and timeout_s == POLL_S / 10:
            time.sleep(0.001)  # the storage is asked, by a thread that knows nothing of our clock
        elif not heard:
            self.now += timeout_s
        return heard, {}

    def answers(self, node: int, command: m.Command) -> list[m.Event]:
        match command:
            case m.Greet(attempt):
                ready = m.Ready("worker", self.workers[node], 100 + node)
                return [m.Greeted((), attempt), m.Described(DESCRIPTION), ready]
            case m.Prepare(epoch=epoch):
                self.epoch = epoch
                return [m.Prepared(None, 100, epoch, f"host{node}:1")]
            case m.Initialise():
                return [m.Started(0, self.epoch)]
            case m.Copy(address):
                return [m.PeerFailed(address, InfrastructureError("refused"), self.epoch)]
        return []

    def abandon(self, node: int) -> None:
        raise AssertionError(f"node {node} is not lost")

    def close(self) -> None:
        self.workers.clear()

    # -- whoever watches, and stops the run ---------------------------------------------------------------

    def note(self, note: Note) -> None:
        self.notes.append(note)

    def progress(self, snapshot: object) -> None:
        assert self.now < 1000.0 + 2 * self.until_s, "it was asked to stop and does not"

    def signalled(self) -> Status | None:
        return Status.INTERRUPTED if self.now >= 1000.0 + self.until_s else None

    def times(self, kind: type) -> list[float]:
        """Seconds from the beginning until commands of a kind were sent."""
        return [at - 1000.0 for at, _, command in self.told if isinstance(command, kind)]


def coordinate(cluster: Cluster) -> Coordinator:
    """Run an attempt on the cluster until it has played its time."""
    run = RunDirectory(MemoryStore())
    records = Records(run, cluster, Ledger(), Meter(Pace(), 0))
    attempt = run.claim_attempt()
    coordinator = Coordinator(
        Job(model=dict, data=list, batch_size=4, steps=3),
        Settings(run.store.url, least=1, most=2, microbatches=2, nodes=2),
        run,
        attempt,
        cluster,
        records,
        cluster,
        cluster.signalled,
        lambda node, error: None,
        lambda: cluster.now,
    )
    records.open(attempt, coordinator.sign)
    try:
        state = coordinator.run()
    finally:
        records.stop()
    assert state.status is Status.INTERRUPTED, state.error
    return coordinator


def test_nodes_that_do_not_come_are_waited_for_20_s_and_no_longer() -> None:
    """Ray has no room for the second worker: with --workers 1:2 the first one trains alone."""
    cluster = Cluster(there=(0,), until_s=3 * GATHER_S)
    coordinator = coordinate(cluster)
    assert WAITING_S < GATHER_S, "meanwhile the user is reminded"
    assert [note.kind for note in cluster.notes].count("waiting") == 1
    assert cluster.times(m.Prepare) == [pytest.approx(GATHER_S, abs=2 * POLL_S)]
    assert coordinator.state.members == (0,)


def test_nodes_that_are_all_there_are_not_waited_for() -> None:
    cluster = Cluster(there=(0, 1), until_s=1.0)
    coordinate(cluster)
    assert cluster.times(m.Prepare)[:2] == [0.0, 0.0]


def test_rounds_in_vain_pause_for_as_long_as_the_machine_says() -> None:
    cluster = Cluster(there=(0, 1), until_s=5.0)
    coordinate(cluster)
    rounds = cluster.times(m.Initialise)
    pauses = [after - before for before, after in pairwise(rounds)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6], abs=0.001)
