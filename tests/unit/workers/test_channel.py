"""Messages arrive whole and in order, however the stream is cut into pieces."""

from __future__ import annotations

import pickle
import secrets
import socket
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.channel import Channel, accept, address_for, connect, listen
from workers.processes import ProcessId

if TYPE_CHECKING:
    from collections.abc import Iterator

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)


def framed(*message: Any) -> bytes:
    data = pickle.dumps(message, protocol=5)
    return struct.pack("<I", len(data)) + data


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    a, b = (Channel(sock) for sock in socket.socketpair())
    yield a, b
    a.close()
    b.close()


@given(messages=st.lists(st.lists(VALUES, min_size=1, max_size=3), min_size=1, max_size=5), data=st.data())
def test_messages_survive_every_cut_of_the_stream(messages: list[list[Any]], data: st.DataObject) -> None:
    stream = b"".join(framed(*message) for message in messages)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    left, right = socket.socketpair()
    channel = Channel(right)
    received = []
    with left, right:
        for low, high in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            if low < high:
                left.sendall(stream[low:high])
                received += channel.receive_ready()
        assert received == [tuple(message) for message in messages]
        left.close()
        with pytest.raises(EOFError):
            channel.receive_ready()


def test_one_byte_at_a_time_is_enough(pair: tuple[Channel, Channel]) -> None:
    a, b = pair
    stream = framed("done", 3, (1, 2)) + framed("x")
    for i in range(len(stream)):
        a.socket.sendall(stream[i : i + 1])
        messages = b.receive_ready()
        assert len(messages) == (i + 1 in (len(framed("done", 3, (1, 2))), len(stream)))


def test_a_message_larger_than_every_buffer_arrives(pair: tuple[Channel, Channel]) -> None:
    a, b = pair
    array = np.random.default_rng(0).random(3_000_000)
    sender = threading.Thread(target=a.send, args=("big", array, b"x" * 1_000_000))
    sender.start()
    kind, received, tail = b.receive()
    sender.join(10)
    assert kind == "big"
    assert (received == array).all()
    assert received.flags.writeable
    assert len(tail) == 1_000_000


def test_what_was_sent_before_the_end_is_still_received(pair: tuple[Channel, Channel]) -> None:
    a, b = pair
    a.send("failed", "why")
    a.send("last")
    a.close()
    assert b.receive() == ("failed", "why")
    assert b.receive() == ("last",)
    with pytest.raises(EOFError):
        b.receive()


def test_the_end_in_the_middle_of_a_message_is_the_end(pair: tuple[Channel, Channel]) -> None:
    a, b = pair
    a.socket.sendall(framed("gradient", 1, 2, 3)[:-1])
    a.close()
    with pytest.raises(EOFError):
        b.receive()


def test_sending_to_one_that_is_gone_is_the_end(pair: tuple[Channel, Channel]) -> None:
    a, b = pair
    b.close()
    with pytest.raises(EOFError):
        a.send("x" * 10_000)


def test_a_length_that_cannot_be_ours_ends_the_connection_before_it_is_allocated(
    pair: tuple[Channel, Channel],
) -> None:
    a, b = pair
    a.socket.sendall(b"\xff\xff\xff\x7f and more")
    with pytest.raises(EOFError, match="no message of ours"):
        b.receive()


def test_closing_ends_the_stream_for_a_child_that_holds_the_descriptor_too(
    pair: tuple[Channel, Channel],
) -> None:
    a, b = pair
    with a.socket.dup():
        a.close()
        with pytest.raises(EOFError):
            b.receive()


def test_connect_waits_for_a_listener_that_comes_later() -> None:
    address = address_for(secrets.token_hex(8))
    found: list[Channel | None] = []

    def serve() -> None:
        time.sleep(0.15)
        with listen(address) as listener:
            found.append(accept(listener))

    thread = threading.Thread(target=serve)
    thread.start()
    channel = connect(address, 10)
    thread.join(10)
    (served,) = found
    assert served is not None
    channel.send("join", "worker", 0, 1)
    assert served.receive() == ("join", "worker", 0, 1)
    channel.close()
    served.close()


def test_connect_gives_up_in_time_and_names_the_address() -> None:
    name = secrets.token_hex(8)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=name):
        connect(address_for(name), 0.1)
    assert time.monotonic() - began < 2


def test_an_address_in_use_cannot_be_listened_on_again() -> None:
    address = address_for(secrets.token_hex(8))
    with listen(address), pytest.raises(OSError, match="in use"):
        listen(address)


def test_what_is_there_is_had_without_waiting(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    assert other.received() == []
    for number in range(3):
        one.send("message", number)
    assert other.receive() == ("message", 0), "the others came with it"
    assert other.received() == [("message", 1), ("message", 2)]
    assert other.received() == []
    one.close()
    with pytest.raises(EOFError):
        other.received()


def test_nobody_waits_for_an_agent_whose_supervisor_is_gone() -> None:
    with subprocess.Popen(["sleep", "60"]) as supervisor:
        known = ProcessId.of(supervisor.pid)
        supervisor.kill()
        supervisor.wait()
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no agent answers at @.*, and its supervisor is gone"):
            connect(address_for(secrets.token_hex(8)), 60.0, known)
        assert time.monotonic() - began < 30
