"""A writer: stores pinned buffers as checkpoints, and reads checkpoints back into buffers.

It runs beside training at low priority and holds nothing that is needed later: when it dies, its checkpoint
is given up and the pin released, and training does not notice.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from storage.checkpoint import Compression, write_part
from storage.errors import HoldfastError
from storage.objects import read_manifest
from storage.reader import restore
from storage.shards import plan
from storage.store import open_store
from workers.channel import Channel, connect
from workers.faults import Fault, planned_fault
from workers.redaction import Redactor
from workers.state import Arena
from workers.worker import CONNECT_TIMEOUT_S, end_with

if TYPE_CHECKING:
    from workers.processes import ProcessId

NICENESS = 10


def run_writer(address: str, rank: int, generation: int, supervisor: ProcessId | None = None) -> None:
    """Serve the agent at `address` until it ends the connection; `supervisor` is as of `connect`."""
    channel = connect(address, CONNECT_TIMEOUT_S, supervisor)
    channel.send("join", "writer", rank, os.getpid(), generation)
    released = end_with(channel)
    fault = planned_fault("writer", rank, generation)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    channel.send("ready", None)
    with contextlib.suppress(EOFError):  # the agent is gone, which ends this process
        _serve(channel, fault)
    released.set()
    channel.close()


def _serve(channel: Channel, fault: Fault | None) -> None:
    arena: Arena | None = None
    while True:
        kind, *arguments = channel.receive()
        if kind == "exit":
            return
        if kind == "open":
            arena = Arena.attach(arguments[0])
            continue
        assert arena is not None
        try:
            if kind == "write":
                _write(channel, arena, fault, *arguments)
            else:
                _restore(channel, arena, fault, *arguments)
        except HoldfastError as error:
            channel.send("failed", kind, Redactor.of(os.environ).error(error))


def _write(
    channel: Channel,
    arena: Arena,
    fault: Fault | None,
    buffer: int,
    step: int,
    url: str,
    directory: str,
    compression: Compression,
    in_flight: int,
    share: tuple[int, int],
) -> None:
    _strike(fault, step, "before")
    index, num_writers = share
    shards = [s for s in plan(arena.spec.arrays, num_writers) if s.writer == index]
    flat = arena.buffers[buffer]
    part = write_part(
        open_store(url),
        directory,
        arena.spec.arrays,
        flat,
        shards,
        compression=compression,
        in_flight=in_flight,
    )
    _strike(fault, step, "after")
    channel.send("written", step, part, directory)


def _restore(
    channel: Channel, arena: Arena, fault: Fault | None, buffer: int, url: str, directory: str
) -> None:
    _strike(fault, 0, "restore")
    store = open_store(url)
    manifest = read_manifest(store, directory)
    restore(store, directory, manifest, arena.spec.arrays, arena.buffers[buffer])
    channel.send("restored", manifest.step, manifest.metrics, manifest.counters)


def _strike(fault: Fault | None, step: int, phase: str) -> None:
    if fault is not None:
        fault.strike(step, phase)
