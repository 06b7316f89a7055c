"""What only a store on an SSH server has to get right: who is trusted, what is flushed, what is cut off."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from storage.errors import ConfigurationError, StorageError
from storage.store import open_store
from tests.integration.harness import TINY
from tests.integration.servers import free_port, new_key, sessions, settings, ssh

pytestmark = pytest.mark.servers


class Server:
    """An sshd, and the home directory of the tests that use it."""

    def __init__(self, home, environment, folder, process):
        self.home = home
        self.environment = environment
        self.folder = folder
        self.process = process

    @property
    def config(self):
        return self.home / ".ssh" / "config"

    def asked(self):
        """What the SFTP server was asked to do so far: verb and the last two names of each path."""
        found = []
        log = self.home / "sftp.log"  # there from the first login on
        for line in log.read_text().splitlines() if log.exists() else ():
            if words := re.match(r"(open|fsync|close|posix-rename|hardlink|remove)\b", line):
                paths = re.findall(r'"([^"]*)"', line)
                names = [re.sub(r"tmp-\w+", "tmp", "/".join(path.split("/")[-2:])) for path in paths]
                found.append((words[1], *names))
        return found


@contextlib.contextmanager
def serving(folder, denied=""):
    with ssh(folder, denied) as (environment, new_folder, process), settings(environment):
        yield Server(folder, environment, new_folder, process)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture
def server(shared):
    """The module's server, with `~/.ssh` as it was at first."""
    folder = shared.home / ".ssh"
    kept = shared.home / "kept"
    shutil.copytree(folder, kept)
    yield shared
    shutil.rmtree(folder)
    shutil.move(kept, folder)


def stored_at(store):
    """The store's directory, on the server's disk."""
    return Path("/" + store.url.split("/", 3)[3])


def opened(url, deadline_s=0.0):
    store = open_store(url)
    store.deadline_s = deadline_s
    return store


def refused(url):
    """The message with which a place is refused, before anything was tried again."""
    begin = time.monotonic()
    with pytest.raises(ConfigurationError) as info:
        open_store(url).list()
    assert time.monotonic() - begin < 10
    assert "\n" not in str(info.value)
    return str(info.value)


def test_a_host_that_is_not_known_is_refused(server):
    (server.home / ".ssh" / "known_hosts").unlink()
    message = refused(server.folder())
    assert "sftp://" in message
    assert "known_hosts" in message


def test_a_host_whose_key_is_another_one_is_refused(server):
    known = server.home / ".ssh" / "known_hosts"
    host = known.read_text().split()[0]
    known.write_text(f"{host} {new_key(server.home / 'kept' / 'other')}")
    assert "known_hosts" in refused(server.folder())


@pytest.mark.parametrize("line", ["UserKnownHostsFile none", "StrictHostKeyChecking no"])
def test_no_setting_makes_an_unknown_host_trusted(server, line):
    (server.home / ".ssh" / "known_hosts").unlink()
    server.config.write_text(f"{line}\n")
    assert "known_hosts" in refused(server.folder())


def test_a_file_of_known_hosts_that_is_missing_is_a_configuration_error(server):
    server.config.write_text("UserKnownHostsFile /no/such/file\n")
    assert ".ssh/config" in refused(server.folder())


def test_a_user_without_a_key_is_refused(server):
    (server.home / ".ssh" / "id_ed25519").unlink()
    assert "name the user in the URL" in refused(server.folder())


def test_a_host_of_no_such_name_is_refused():
    assert "check the name of the host" in refused("sftp://no-such-host.invalid/run")


def test_user_port_key_and_known_hosts_may_stand_in_the_configuration_of_ssh(server):
    folder = server.home / ".ssh"
    (folder / "id_ed25519").rename(folder / "key-of-mine")
    (folder / "known_hosts").rename(folder / "hosts-of-mine")
    user, port, path = re.fullmatch(r"sftp://(.+)@127\.0\.0\.1:(\d+)(/.+)", server.folder()).groups()
    server.config.write_text(
        f"Host shelf\n  HostName 127.0.0.1\n  Port {port}\n  User {user}\n"
        f"  IdentityFile {folder}/key-of-mine\n  UserKnownHostsFile {folder}/hosts-of-mine\n"
    )
    store = opened(f"ssh://shelf{path}")
    store.write("a/k", [b"x"])
    assert (stored_at(store) / "a" / "k").read_bytes() == b"x"


def test_a_key_may_be_in_an_agent(server, tmp_path):
    if shutil.which("ssh-agent") is None:
        pytest.skip("ssh-agent is not installed")
    key = server.home / ".ssh" / "id_ed25519"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        with settings({"SSH_AUTH_SOCK": str(tmp_path / "agent")}):
            deadline = time.monotonic() + 10
            while not (tmp_path / "agent").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            subprocess.run(["ssh-add", "-q", str(key)], check=True, timeout=30)
            key.unlink()
            opened(server.folder()).write("k", [b"x"])
    finally:
        agent.terminate()
        agent.wait(10)


def test_everything_is_flushed_before_and_after_its_name_appears(server):
    store = opened(server.folder())
    store.write("first", [b"x"])
    before = len(server.asked())
    store.write("d/k", [b"x"])
    store.create("d/c", b"x")
    assert server.asked()[before:] == [
        ("open", "d/.tmp"),  # in vain: there is no directory yet
        ("open", "runs/one"),
        ("fsync", "runs/one"),
        ("close", "runs/one"),
        ("open", "d/.tmp"),
        ("fsync", "d/.tmp"),
        ("close", "d/.tmp"),
        ("posix-rename", "d/.tmp", "d/k"),
        ("open", "one/d"),
        ("fsync", "one/d"),
        ("close", "one/d"),
        ("open", "d/.tmp"),
        ("fsync", "d/.tmp"),
        ("close", "d/.tmp"),
        ("hardlink", "d/.tmp", "d/c"),
        ("remove", "d/.tmp"),
        ("open", "one/d"),
        ("fsync", "one/d"),
        ("close", "one/d"),
    ]


@pytest.mark.parametrize(
    ("denied", "act", "lacking"),
    [
        ("posix-rename", lambda store: store.write("k", [b"x"]), "posix-rename@openssh.com"),
        ("hardlink", lambda store: store.create("k", b"x"), "hardlink@openssh.com"),
    ],
)
def test_a_server_that_cannot_store_whole_objects_is_refused(tmp_path, denied, act, lacking):
    with serving(tmp_path, denied) as server:
        store = open_store(server.folder())
        with pytest.raises(ConfigurationError, match=lacking):
            act(store)
        assert os.listdir(stored_at(store)) == []


def test_a_server_that_cannot_flush_is_used_as_it_is(tmp_path):
    with serving(tmp_path, "fsync") as server:
        store = opened(server.folder())
        store.write("a/k", [b"x"])
        assert store.create("a/c", b"x") is True
        assert store.list() == {"a/k": 1, "a/c": 1}


def test_what_killed_writers_left_is_hidden_and_goes_with_the_directory(server):
    store = opened(server.folder())
    store.write("d/k", [b"x"])
    place = stored_at(store)
    (place / "d" / ".tmp-0123").write_bytes(b"torn")
    os.utime(place / "d" / "k", (1e9, 1e9))
    os.utime(place / "d" / ".tmp-0123", (4e9, 4e9))
    (place / ".hidden").mkdir()
    assert store.list() == {"d/k": 1}
    assert [*store.children()] == ["d"]
    assert store.last_change("d") == 4e9
    store.delete_directory("d")
    assert os.listdir(place) == [".hidden"]


def test_links_are_seen_as_what_they_lead_to(server):
    store = opened(server.folder())
    store.write("real/k", [b"12"])
    place = stored_at(store)
    (place / "also").symlink_to("real")
    (place / "real" / "l").symlink_to("k")
    (place / "real" / "nowhere").symlink_to("none")
    assert [*store.children()] == ["also", "real"]
    assert store.list() == {"real/k": 2, "real/l": 2}
    assert store.list("also") == {"also/k": 2, "also/l": 2}
    store.delete_directory("real")
    assert sorted(os.listdir(place)) == ["also"]


def test_deleting_the_last_object_removes_its_directories_but_not_the_root(server):
    store = opened(server.folder())
    store.write("a/b/c", [b"x"])
    store.write("k", [b"x"])
    store.delete(["a/b/c", "k"])
    assert os.listdir(stored_at(store)) == []


def test_a_place_that_cannot_be_written_is_a_configuration_error(server):
    store = opened(server.folder())
    store.write("file", [b""])
    with pytest.raises(ConfigurationError, match=r"file/run"):
        opened(f"{store.url}/file/run").write("k", [b"x"])


def test_a_lost_connection_is_made_again(server):
    store = opened(server.folder(), 30.0)
    store.write("k", [b"x"])
    cut(server)
    assert store.read("k") == b"x"
    cut(server)
    assert store.create("c", b"nonce") is True


def test_a_write_whose_connection_is_cut_begins_anew_and_is_whole(server):
    store = opened(server.folder(), 30.0)
    cuts = []

    def buffers():
        for i in range(24):
            if i == 20 and not cuts:
                cuts.append(cut(server))
            yield bytes([i]) * (1 << 20)

    assert store.write("k", Again(buffers)) == 24 << 20
    assert cuts
    assert store.read("k") == b"".join(bytes([i]) * (1 << 20) for i in range(24))


class Again:
    """An iterable that begins anew each time."""

    def __init__(self, make):
        self._make = make

    def __iter__(self):
        return self._make()


def cut(server):
    """End every connection as a failing network would: without a word."""
    found = sessions(server.process)
    assert found, "nobody is connected"
    for each in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    deadline = time.monotonic() + 10
    while set(sessions(server.process)) & set(found) and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(found)


def test_a_server_that_says_nothing_is_given_up(server):
    store = opened(server.folder())
    store.answer_s = 1.0
    store.write("k", [b"x"])
    stopped = [each for each in sessions(server.process) if each.name() == "sftp-server"]
    assert stopped
    for each in stopped:
        each.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(StorageError, match="has not answered for 1 s"):
            store.read("k")
        store.answer_s = 60.0
        assert store.read("k") == b"x"
    finally:
        for each in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGCONT)


def test_nobody_at_the_port_is_a_storage_error(server):
    store = opened(f"sftp://127.0.0.1:{free_port()}/run")
    with pytest.raises(StorageError, match=r"sftp://127\.0\.0\.1") as info:
        store.list()
    assert not isinstance(info.value, ConfigurationError)


def test_threads_share_a_store_and_leave_nothing_open(server):
    threads, others = threading.active_count(), set(sessions(server.process))
    store = opened(server.folder(), 30.0)
    with ThreadPoolExecutor(8) as pool:
        writing = [pool.submit(store.write, f"d/{i % 4}", [bytes(3 << 20)]) for i in range(16)]
        assert sum(each.result() for each in writing) == 48 << 20
    assert store.list() == {f"d/{i}": 3 << 20 for i in range(4)}
    assert set(sessions(server.process)) - others
    del store
    deadline = time.monotonic() + 10
    while set(sessions(server.process)) - others and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(sessions(server.process)) <= others
    assert threading.active_count() <= threads


def test_a_run_goes_on_from_a_server_and_writes_one_shard_at_a_time_if_told_so(server, place):
    place.file("one.py", TINY.replace("keep=3", "keep=3, in_flight=1"))
    url, before = server.folder(), len(server.asked())
    for steps in (10, 15):
        words = place.command("one.py", url, steps=steps, workers=1, settings={"every": 5})
        result = place.start(words, server.environment).wait().done()
    assert (result["attempt"], result["step"]) == (2, 15)
    wanted = ("fsync", "posix-rename")
    shards = [verb for verb, name, *_ in server.asked()[before:] if name == "c/.tmp" and verb in wanted]
    assert len(shards) >= 12
    assert shards == [*wanted] * (len(shards) // 2)


def test_a_fork_logs_in_on_its_own(server):
    code = (
        "import os, sys\n"
        "from storage.store import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "store.write('k', [b'parent'])\n"
        "if os.fork() == 0:\n"
        "    store.write('c', [store.read('k') + b' and child'])\n"
        "    os._exit(0)\n"
        "assert os.wait()[1] == 0\n"
        "print(store.read('c').decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, server.folder()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "parent and child\n", "")
