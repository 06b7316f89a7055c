"""Several nodes' and their coordinators' state machines, against peers that die whenever they like.

RECOVERY.md names the invariants A to E; `world` checks them after every event. A failure prints its seed and
the last events; `HOLDFAST_SIM_SEED=17 pytest tests/sim/test_training.py` plays that seed alone.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from orchestrator.events import Status
from tests.sim.network import PlayedExchange
from tests.sim.players import Player
from tests.sim.training_job import gradient
from tests.sim.world import Odds, World, told

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 50


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    directory = tempfile.mkdtemp(prefix="simulated-", dir=shared)
    monkeypatch.setenv("HOLDFAST_SHM_DIR", directory)
    monkeypatch.setattr("workers.links.Exchange", PlayedExchange)
    yield
    shutil.rmtree(directory)


def seeds(count: int) -> pytest.MarkDecorator:
    """So many seeds in chunks, or the one that the environment names."""
    one = os.environ.get("HOLDFAST_SIM_SEED")
    chunks = [[int(one)]] if one else [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    return pytest.mark.parametrize("chosen", chunks, ids=lambda chunk: f"from {chunk[0]}")


def played(world: World) -> World:
    """Run it, again if it was stopped; what goes wrong is told with its seed and events."""
    try:
        for _ in range(20):
            state = world.run()
            if state.status is Status.DONE:
                world.check_done(state)
                return world
            world.note(f"stopped: {state.status}")
            world.forget()
            world.up = {*world.room}
            world.succeed()
        pytest.fail("it is stopped for ever")
    except BaseException as error:
        told(world, error)
        raise
    finally:
        world.end_attempt(remove=True)


ALL = Odds(
    disturbance=0.015,
    worker=10,
    agent=3,
    crowd=1,
    machine=2,
    coordinator=2,
    zombie=1,
    scale=2,
    drain=1,
    signal=1,
)

KINDS = {
    "workers": Odds(),
    "agents": Odds(worker=2, agent=5, crowd=3, disturbances=6),
    "machines": Odds(worker=2, machine=5, disturbances=6),
    "coordinators": Odds(worker=2, coordinator=4, zombie=4, disturbances=8),
    "scaling": Odds(worker=2, scale=8),
    "draining": Odds(worker=2, drain=4, machine=1, disturbances=6),
    "stopping": Odds(worker=2, signal=3, agent=1, disturbances=6),
    "everything": ALL,
}


@pytest.mark.parametrize("kind", KINDS)
@seeds(400)
def test_every_run_ends_in_the_bits_of_the_undisturbed_one(kind: str, chosen: range) -> None:
    for seed in chosen:
        played(World(seed, f"{kind}-{seed}", KINDS[kind]))


@seeds(40)
def test_an_undisturbed_run_ends_with_the_processes_it_began_with(chosen: range) -> None:
    quiet = Odds(disturbances=0, raising=0, writing_fails=0, commit_fails=0, fetch_fails=0)
    for seed in chosen:
        world = World(seed, f"quiet-{seed}", quiet)
        played(world)
        roles = Counter(action.role for action in world.coordinator.started)
        assert world.players == roles["worker"] + roles["writer"]
        assert set(world.coordinator.state.generations.values()) == {0}


def test_nodes_that_live_and_cannot_reach_each_other_try_again_ever_less_often() -> None:
    """Round after round, each of them in vain; when the network is whole again they end in the same bits."""
    quiet = Odds(disturbances=0, raising=0, writing_fails=0, commit_fails=0, fetch_fails=0)
    tried = 0
    for seed in range(60):
        world = World(seed, f"parted-{seed}", quiet)
        if len(world.coordinator.state.nodes) < 2:
            world.end_attempt(remove=True)
            continue
        tried += 1
        world.network.parted = True
        while world.now_s < 60:
            world.turn()
        rounds = world.coordinator.state.epoch
        assert 20 <= rounds <= 30, f"seed {seed}: {rounds} rounds in {world.now_s:.0f} s"
        world.network.parted = False
        played(world)
    assert tried > 10


@seeds(100)
def test_damaged_checkpoints_are_left_for_those_before_them(chosen: range) -> None:
    """All memory is gone, and the newest checkpoint is bad."""
    for seed in chosen:
        world = World(seed, f"damaged-{seed}", Odds(disturbances=3))
        played(world)
        world.damaged.add(world.newest_checkpoint() or "")
        world.steps += 2
        for node in world.room:
            world.lose_machine(node)
        world.up = {*world.room}
        world.visible = -1
        world.succeed()
        played(world)
        assert any("falling back" in line for line in world.log)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_committed_by_no_node(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever dies, joins or leaves meanwhile: the node that computed it judges it before it serves it."""

    def diverging(params: Any, step: int, item: int) -> Any:
        grad, sums = gradient(params, step, item)
        if (step, item) == (2, 1):
            grad[7] = value
        return grad, sums

    monkeypatch.setattr("tests.sim.players.gradient", diverging)
    for seed in range(60):
        world = World(seed, f"diverging-{seed}", ALL)
        world.steps = 5
        with pytest.raises(AssertionError, match=r"^DivergenceError\(.*step 2, microbatch 1"):
            played(world)
        assert world.visible <= 2
        assert all(agent.training._step <= 2 for agent in world.agents)


@pytest.mark.parametrize("phase", ["initialise", "gradient", "reduce", "update", "evaluate"])
def test_work_that_kills_every_worker_ends_the_run_naming_it(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in native code, or out of memory: redoing it for ever helps nobody."""

    died: list[int] = []

    def die(player: Player, *_: object) -> None:
        player.alive = False
        died.append(player.world.seed)

    monkeypatch.setattr(Player, phase, die)
    quiet = Odds(disturbances=0, raising=0, writing_fails=0, commit_fails=0, fetch_fails=0)
    for seed in range(60):
        world = World(seed, f"deadly-{seed}", quiet)
        try:
            played(world)
        except AssertionError as error:
            assert re.match(r"UserCodeError\(.*(killed|die while)", str(error))  # noqa: PT017 it may also end well
            assert seed in died
        else:
            assert seed not in died
    assert died
