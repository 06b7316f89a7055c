"""A run's directory: its identity, attempts, checkpoints, signs of life and journal."""

from __future__ import annotations

import os
import random
import re
import secrets
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from storage import catalog
from storage.errors import (
    CheckpointError,
    ConfigurationError,
    CorruptCheckpoint,
    ObjectMissing,
    StorageError,
    Superseded,
)
from storage.manifest import MANIFEST, Base, Manifest
from storage.objects import read_manifest, sizes_in
from storage.retention import Retention, to_delete
from storage.strict_json import MAX_NBYTES, canonical, fields, parse, spelled

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from storage.catalog import Chain, Entry
    from storage.store import Store

FORMAT = 1
IDENTITY = "run.json"
REQUESTS = "requests"
MAX_REQUEST_NBYTES = 1 << 16
GRACE_S = 3600.0
"""Seconds for which what an earlier attempt may still be writing is left alone."""

MAX_RECORD_NBYTES = 4 << 20
"""Of a base record: the line of some 100,000 attempts."""

_CLAIM_TRIES = 20
_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_BASE_KINDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "attempt": int,
    "nonce": str,
    "base": (dict, type(None)),
    "chain": list,
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """The right to carry a run on, until a higher number is claimed."""

    number: int
    nonce: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """A checkpoint directory that nobody can use, and why."""

    directory: str
    reason: str
    nbytes: int


class RunDirectory:
    """Everything a run has stored at one URL. Holds no state but caches of what never changes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._identity: dict[str, Any] | None = None
        self._manifests: dict[str, Manifest] = {}
        self._complete: dict[str, Entry] = {}  # found so once, and not deleted by us since

    # Identity

    def identity(self) -> dict[str, Any] | None:
        """The content of run.json; None where there is no run yet."""
        if self._identity is None:
            try:
                data = self.store.read(IDENTITY, 0, MAX_NBYTES + 1)
            except ObjectMissing:
                return None
            self._identity = self._checked_identity(data)
        return self._identity

    def create_identity(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Store `identity` unless the run has one; returns the one that stands, ours or theirs.

        Adds format, run_id, place_id (both new) and created_at.
        """
        own = {
            "format": FORMAT,
            "run_id": str(uuid.uuid4()),
            "place_id": str(uuid.uuid4()),
            "created_at": _now(),
        }
        self.store.create(IDENTITY, canonical({**identity, **own}))
        standing = self.identity()
        if standing is None:
            raise StorageError(f"{self.store.url}/{IDENTITY} was created but cannot be found")
        return standing

    def copy_identity(self, identity: dict[str, Any]) -> None:
        """Make this a copy of a run at another place, unless there is a run already."""
        self.store.create(IDENTITY, canonical({**identity, "place_id": str(uuid.uuid4())}))
        self._identity = None

    def place(self, identity: Mapping[str, Any]) -> str:
        """What names the memory of this run on the nodes that train it.

        It depends on the URL, too: a copy that was not made by `copy_identity`, but by `cp -r`, has the same
        `place_id`, and is not to take the memory of the run that it is a copy of.
        """
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{identity['place_id']} {self.store.url}"))

    def _checked_identity(self, data: bytes) -> dict[str, Any]:
        where = f"{self.store.url}/{IDENTITY}"
        try:
            doc = parse(data)
            canonical(doc)  # what it cannot spell could not be copied
        except ValueError as exc:
            raise CorruptCheckpoint(f"{where} is damaged: {exc}: put a copy of it back") from exc
        number = doc.get("format") if isinstance(doc, dict) else None
        if type(number) is int and number != FORMAT:
            raise ConfigurationError(
                f"{where} has format {str(number)[:20]}, this version reads {FORMAT}: use a newer holdfast"
            )
        ids = [doc.get(name) for name in ("run_id", "place_id")] if type(number) is int else [None]
        if not all(isinstance(value, str) and _ID.fullmatch(value) for value in ids):
            raise CorruptCheckpoint(f"{where} does not describe a run")
        return dict(doc)

    # Attempts

    def claim_attempt(self) -> Attempt:
        """Take the next attempt number, which no other caller gets.

        The claim is created first and the others are listed after: of any two claims of one number, the later
        one sees the earlier and leaves the number to it. So this holds even where creation is not exclusive.
        """
        nonce = secrets.token_hex(8)
        for tries in range(_CLAIM_TRIES):
            number = catalog.next_attempt(self._names())
            if number > catalog.MAX_ATTEMPT:
                raise CheckpointError(
                    f"{self.store.url} has no attempt number left after {catalog.MAX_ATTEMPT}: "
                    "copy its latest checkpoint to a new directory"
                )
            claim = {
                "format": FORMAT,
                "attempt": number,
                "nonce": nonce,
                "created_at": _now(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
            }
            self.store.create(catalog.attempt_key(number, nonce), canonical(claim))
            claims = [a for a in self._attempt_files() if not a.kind]
            if [a.nonce for a in claims if a.number == number] == [nonce]:
                self._identity = None  # it may have been replaced where creation is not exclusive
                return Attempt(number, nonce)
            time.sleep(random.uniform(0.0, 0.01 * 2 ** min(tries, 7)))  # both may have left it to the other
        raise StorageError(
            f"{self.store.url}: {_CLAIM_TRIES} attempt numbers were taken by others: try again"
        )

    def newest_attempt(self) -> int:
        """The highest attempt number claimed; 0 if there is none."""
        return max((a.number for a in self._attempt_files()), default=0)

    def record_base(self, attempt: Attempt, base: Base | None, *, only_stored: bool = False) -> None:
        """State where `attempt` goes on from, and with it which earlier attempts count up to which step.

        From here on this alone decides which checkpoints are valid. With `only_stored`, attempts of which no
        checkpoint is left are left out: nobody can go on from one, unless from memory. Raises CheckpointError
        if `base` is on no line of history that was recorded, Superseded if a newer attempt has begun.
        """
        chain = catalog.extend(base, {})
        for record in self._base_records():
            if chain is not None:
                break
            if record.number < attempt.number:
                chain = catalog.extend(base, {record.number: self._read_chain(record)})
        if chain is None:
            assert base is not None
            if (newest := self.newest_attempt()) > attempt.number:
                raise Superseded(
                    f"attempt {newest} has taken over {self.store.url}: attempt {attempt.number} stops"
                )
            raise CheckpointError(
                f"{self.store.url}: step {base.step} of attempt {base.attempt} is on no recorded line"
            )
        if only_stored:
            stored = {_parsed(directory)[1] for directory in self._directories()}
            chain = tuple(link for link in chain if link.attempt in stored or link == base)
        self.record_line(attempt, base, chain)

    def record_line(self, attempt: Attempt, base: Base | None, chain: Chain) -> None:
        """State where `attempt` goes on from and what counts before it, on a line recorded elsewhere."""
        doc = {
            "format": FORMAT,
            "attempt": attempt.number,
            "nonce": attempt.nonce,
            "base": base.to_json() if base else None,
            "chain": [link.to_json() for link in chain],
        }
        key = catalog.attempt_key(attempt.number, attempt.nonce, ".base")
        data = canonical(doc)
        if len(data) > MAX_RECORD_NBYTES:
            raise CheckpointError(
                f"{self.store.url}: the line of {len(chain)} attempts has become too long to be recorded: "
                "copy the latest checkpoint to a new directory"
            )
        if not self.store.create(key, data) and self.store.read(key) != data:
            raise CheckpointError(f"{self.store.url}/{key}: the attempt has recorded another base before")

    def stands(self, base: Base) -> bool:
        """Whether a state found elsewhere, at this step of this attempt, is on the newest line of history."""
        number, chain = self.line()
        return catalog.is_valid(base.attempt, base.step, chain, number)

    def _attempt_files(self) -> list[catalog.AttemptFile]:
        found = (catalog.parse_attempt(key) for key in self.store.list(catalog.ATTEMPTS))
        return sorted((a for a in found if a), key=lambda a: (a.number, a.nonce))

    def _base_records(self) -> list[catalog.AttemptFile]:
        """Newest first."""
        return [a for a in reversed(self._attempt_files()) if a.kind == ".base"]

    def _read_chain(self, record: catalog.AttemptFile) -> Chain:
        key = catalog.attempt_key(record.number, record.nonce, record.kind)
        try:
            data = self.store.read(key, 0, MAX_RECORD_NBYTES + 1)
            doc = fields(parse(data, max_nbytes=MAX_RECORD_NBYTES), "base record", _BASE_KINDS)
            return tuple(Base.from_json(link, "link of the chain") for link in doc["chain"])
        except ValueError as exc:
            raise CorruptCheckpoint(f"{self.store.url}/{key}: {exc}") from exc

    def line(self) -> tuple[int, Chain] | tuple[None, None]:
        """The newest attempt that has recorded its base, and its chain: this decides what is valid."""
        for record in self._base_records():
            return record.number, self._read_chain(record)
        return None, None

    # Checkpoints

    def entries(self) -> list[Entry]:
        """Every checkpoint directory with what it is worth, in (step, attempt) order."""
        number, chain = self.line()
        bad = self.on_record(catalog.QUARANTINE)
        directories = self._directories()
        with ThreadPoolExecutor(self.store.parallel_reads, "holdfast-list") as pool:
            entries = list(pool.map(lambda d: self._judge(d, number, chain, bad), directories))
        latest = catalog.latest(entries)
        return [replace(e, status="latest") if e is latest else e for e in entries]

    def latest(self) -> Entry | None:
        """The checkpoint to resume from; None if there is no valid complete one."""
        while True:
            line = self.line()
            found = next(self.candidates(), None)
            # By a line that others have left behind meanwhile, none of what they keep may count.
            if found is not None or self.line() == line:
                return found

    def candidates(self) -> Iterator[Entry]:
        """The valid complete checkpoints, newest first: the next is there to fall back to."""
        is_first = True
        for entry in self._newest_first():
            if entry.status == "complete":
                yield replace(entry, status="latest") if is_first else entry
                is_first = False

    def damaged(self) -> list[Entry]:
        """What was committed on the newest line after the latest and is, in two listings, not whole."""
        found = []
        for entry in self._newest_first():
            if entry.status == "complete":
                break
            if entry.committed:
                found.append(entry.directory)
        number, chain = self.line()
        again = [self._judge(directory, number, chain, set()) for directory in found]
        return [entry for entry in again if entry.status == "incomplete" and entry.committed]

    def unusable(self, bad: Collection[str] = ()) -> list[Entry]:
        """What was committed and neither counts nor was cut off: it, or what says that it counts, is damaged.

        Where there is no latest checkpoint, starting from zero in spite of these would lose the run.
        `bad` are directories known to be damaged.
        """
        based = {record.number for record in self._base_records()}
        return [
            e
            for e in self.entries()
            if e.directory in bad
            or e.status == "quarantined"
            or (e.committed and (e.status == "incomplete" or e.attempt not in based))
        ]

    def _newest_first(self) -> Iterator[Entry]:
        """The checkpoints on the newest line that are not in quarantine."""
        number, chain = self.line()
        bad = self.on_record(catalog.QUARANTINE)
        for directory in reversed(self._directories()):
            step, attempt, _ = _parsed(directory)
            if directory not in bad and catalog.is_valid(attempt, step, chain, number):
                yield self._judge(directory, number, chain, bad)

    def retain(
        self, retention: Retention, attempt: Attempt | None = None, *, keeps_base: bool = True
    ) -> list[str]:
        """Delete the valid complete checkpoints that are not kept; returns their directories.

        What the newest attempt started from stays (if `keeps_base`), and the last verified one, and the
        pinned ones. The manifest goes first, so what a crash leaves behind is incomplete. Nothing is deleted
        for an `attempt` that has been superseded.
        """
        if retention.keep is None:
            return []
        number, chain = self.line()
        bad = self.on_record(catalog.QUARANTINE)
        entries = []
        for directory in self._directories():
            step, its_attempt, _ = _parsed(directory)
            if directory not in bad and catalog.is_valid(its_attempt, step, chain, number):
                known = self._complete.get(directory)
                entries.append(known or self._judge(directory, number, chain, bad))
        verified = self.on_record(catalog.VERIFIED)
        base = chain[-1] if chain else None
        protected = {e.directory for e in entries if keeps_base and base == Base(e.step, e.attempt)}
        protected |= {e.directory for e in [e for e in entries if e.directory in verified][-1:]}
        deleted = []
        for entry in to_delete(entries, retention, protected | self.pins()):
            if attempt is not None and self.newest_attempt() > attempt.number:
                break
            if entry.directory in self.pins():  # by now: what went before may have taken long
                continue
            self._delete(entry.directory)
            deleted.append(entry.directory)
        return deleted

    def collect(
        self, grace_s: float = GRACE_S, *, invalid: bool = False, dry_run: bool = False
    ) -> list[Garbage]:
        """Delete what earlier attempts have left incomplete, once nothing in it has changed for `grace_s`
        seconds.

        With `invalid`, also their complete checkpoints that are on no line any more. Pinned ones stay. With
        `dry_run` nothing is deleted. Returns what was found.
        """
        number, chain = self.line()
        bad = self.on_record(catalog.QUARANTINE)
        pinned = self.on_record(catalog.PINS)
        found = []
        for directory in self._directories():
            if number is None or _parsed(directory)[1] >= number or directory in pinned:
                continue
            if directory in self._complete and not invalid:
                continue
            entry = self._judge(directory, number, chain, bad)
            unfinished = entry.status == "incomplete" and not entry.committed
            if not unfinished and not (invalid and entry.status == "invalid"):
                continue
            changed = self.store.last_change(directory)
            if changed is not None and time.time() - changed < grace_s:
                continue
            found.append(Garbage(directory, entry.reason, entry.nbytes))
            if not dry_run:
                self._delete(directory)
        if not dry_run:
            self._forget_stale_records()
        return found

    def delete_checkpoints(self) -> None:
        """Delete all checkpoints, the newest last: whoever is interrupted leaves those that would be read."""
        for directory in self._directories():
            self._delete(directory)

    # What is on record about checkpoints

    def quarantine(self, directory: str, reason: str) -> None:
        """Record that a checkpoint is damaged: it counts no longer."""
        self._record(catalog.QUARANTINE, directory, {"reason": reason})
        self._complete.pop(directory, None)

    def mark_verified(self, directory: str) -> None:
        """Record that every byte of a checkpoint was read and found right: the last such one is never
        deleted.
        """
        self._record(catalog.VERIFIED, directory, {})

    def pin(self, directory: str) -> None:
        """Keep a checkpoint whatever the rules of retention say. CheckpointError if it is being deleted."""
        self._record(catalog.PINS, directory, {})
        if f"{directory}/{MANIFEST}" not in self.store.list(directory):
            self.unpin(directory)
            raise CheckpointError(f"{self.store.url}/{directory} has been deleted meanwhile: pin another one")

    def unpin(self, directory: str) -> None:
        """Leave a checkpoint to the rules of retention again."""
        self.store.delete([catalog.record_key(catalog.PINS, directory)])

    def pins(self) -> set[str]:
        """The directories of the pinned checkpoints."""
        return self.on_record(catalog.PINS)

    def on_record(self, kind: str) -> set[str]:
        """The checkpoint directories that a record of this kind is about."""
        return catalog.recorded(kind, self.store.list(kind))

    def _record(self, kind: str, directory: str, content: dict[str, Any]) -> None:
        doc = {
            "format": FORMAT,
            "directory": directory,
            "at": _now(),
            "host": socket.gethostname(),
            **content,
        }
        self.store.write(catalog.record_key(kind, directory), (canonical(doc),))

    def _forget_stale_records(self) -> None:
        """Delete what is on record about checkpoints that are gone."""
        kinds = (catalog.QUARANTINE, catalog.PINS, catalog.VERIFIED)
        recorded = [(kind, self.on_record(kind)) for kind in kinds]
        there = {*self._directories()}  # listed last: what has a record by then was there before
        for kind, directories in recorded:
            if stale := directories - there:
                self.store.delete([catalog.record_key(kind, directory) for directory in stale])

    def probe_exclusive(self) -> bool:
        """Whether creating a key that exists fails here, found out by trying; the store remembers it.

        Where it does not, nonces and signs of life alone keep two coordinators apart.
        """
        key = f"probe-{secrets.token_hex(8)}.json"
        self.store.is_exclusive = True  # else it would look first, as an earlier probe told it to
        try:
            self.store.create(key, b'{"first":true}')
            self.store.is_exclusive = not self.store.create(key, b'{"first":false}')
        finally:
            self.store.delete([key])
        return self.store.is_exclusive

    def _delete(self, directory: str) -> None:
        self.store.delete([f"{directory}/{MANIFEST}"])
        self.store.delete_directory(directory)
        self._manifests.pop(directory, None)
        self._complete.pop(directory, None)

    def _directories(self) -> list[str]:
        """The checkpoint directories in (step, attempt) order."""
        return [name for name in self.store.children(catalog.CHECKPOINTS) if catalog.parse_directory(name)]

    def _names(self) -> list[str]:
        """Every name in the run that tells an attempt's number."""
        return [
            *self.store.list(catalog.ATTEMPTS),
            *self.store.children(catalog.CHECKPOINTS),
            *self.store.list(catalog.JOURNAL),
        ]

    def _judge(self, directory: str, number: int | None, chain: Chain | None, bad: set[str]) -> Entry:
        sizes = sizes_in(self.store, directory)
        manifest, reason = None, ""
        if MANIFEST in sizes:
            try:
                manifest = self._manifest(directory)
            except (CorruptCheckpoint, ObjectMissing) as exc:  # missing: deleted since it was listed
                reason = str(exc).removeprefix(f"{self.store.url}/{directory}: ")
        identity = self.identity()
        entry = catalog.judge(
            directory,
            sizes,
            manifest,
            reason,
            chain=chain,
            newest_attempt=number,
            run_id=identity["run_id"] if identity else None,
            quarantined=directory in bad,
        )
        if entry.status == "complete":
            self._complete[directory] = entry
        return entry

    def _manifest(self, directory: str) -> Manifest:
        if directory not in self._manifests:
            self._manifests[directory] = read_manifest(self.store, directory)
        return self._manifests[directory]

    # Signs of life and journal

    def beat(self, attempt: Attempt, record: dict[str, Any]) -> None:
        """Replace the attempt's sign of life by `record`; attempt and nonce are added."""
        doc = {**record, "attempt": attempt.number, "nonce": attempt.nonce}
        key = catalog.attempt_key(attempt.number, attempt.nonce, ".alive")
        self.store.write(key, (canonical(spelled(doc)),))

    def newest_beat(self) -> dict[str, Any] | None:
        """The sign of life of the newest attempt that has given one."""
        for a in reversed(self._attempt_files()):
            if a.kind == ".alive":
                key = catalog.attempt_key(a.number, a.nonce, a.kind)
                return next(iter(self._json_lines(key)), None)
        return None

    def request(self, name: str, value: dict[str, Any]) -> str:
        """Ask whoever carries the run on for something; returns what names this request."""
        nonce = secrets.token_hex(8)
        self.store.write(f"{REQUESTS}/{name}.json", (canonical({**value, "nonce": nonce}),))
        return nonce

    def requested(self, name: str) -> dict[str, Any] | None:
        """The last request of this name, with its `nonce`; None if there is none that can be read."""
        try:
            request = parse(self.store.read(f"{REQUESTS}/{name}.json", 0, MAX_REQUEST_NBYTES))
        except (ObjectMissing, ValueError):
            return None
        return request if isinstance(request, dict) and isinstance(request.get("nonce"), str) else None

    def write_journal(self, attempt: Attempt, lines: Sequence[dict[str, Any]]) -> None:
        """Replace the attempt's journal by `lines`, one event each."""
        data = b"".join(canonical(spelled(line)) + b"\n" for line in lines)
        self.store.write(catalog.journal_key(attempt.number, attempt.nonce), (data,))

    def record_divergence(self, attempt: Attempt, step: int, record: dict[str, Any]) -> None:
        """Keep what is known of a step at which training diverged."""
        document = {
            "format": FORMAT,
            "attempt": attempt.number,
            "nonce": attempt.nonce,
            "step": step,
            **record,
        }
        self.store.write(catalog.divergence_key(step, attempt.number), (canonical(spelled(document)),))

    def journal(self) -> list[dict[str, Any]]:
        """The events of all attempts, in the order of attempts."""
        return [line for key in self.journals() for line in self.read_journal(key)]

    def journals(self) -> list[str]:
        """The keys of the journals, in the order of attempts."""
        return catalog.journals(self.store.list(catalog.JOURNAL))

    def read_journal(self, key: str) -> list[dict[str, Any]]:
        """The events of one attempt. Raises CorruptCheckpoint if they cannot be read."""
        return self._json_lines(key)

    def _json_lines(self, key: str) -> list[dict[str, Any]]:
        try:
            data = self.store.read(key, 0, MAX_NBYTES + 1)
            if len(data) > MAX_NBYTES:
                raise ValueError(f"more than {MAX_NBYTES} bytes")  # noqa: TRY301
            return [_object(line, number) for number, line in enumerate(data.splitlines(), 1)]
        except ValueError as exc:
            raise CorruptCheckpoint(f"{self.store.url}/{key} is damaged: {exc}") from exc


def _object(line: bytes, number: int) -> dict[str, Any]:
    try:
        value = parse(line)
    except ValueError as exc:
        raise ValueError(f"line {number}: {exc}") from exc
    if not isinstance(value, dict):
        raise ValueError(f"line {number} is not an object")  # noqa: TRY004 - a fault of the document
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _parsed(directory: str) -> tuple[int, int, str]:
    named = catalog.parse_directory(directory)
    assert named is not None, directory
    return named
