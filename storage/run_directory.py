"""A run's directory: its identity, attempts, checkpoints, signs of life and journal."""

from __future__ import annotations

import os
import random
import secrets
import socket
import time
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from storage import catalog
from storage.errors import CheckpointError, ConfigurationError, CorruptCheckpoint, ObjectMissing, StorageError
from storage.manifest import MANIFEST, Base, Manifest
from storage.strict_json import canonical, fields, parse, spelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from storage.catalog import Chain, Entry
    from storage.store import Store

FORMAT = 1
IDENTITY = "run.json"
_CLAIM_TRIES = 20
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


class RunDirectory:
    """Everything a run has stored at one URL. Holds no state but caches of what never changes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._identity: dict[str, Any] | None = None
        self._manifests: dict[str, Manifest] = {}

    # Identity

    def identity(self) -> dict[str, Any] | None:
        """The content of run.json; None where there is no run yet."""
        if self._identity is None:
            try:
                data = self.store.read(IDENTITY)
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

    def _checked_identity(self, data: bytes) -> dict[str, Any]:
        where = f"{self.store.url}/{IDENTITY}"
        try:
            doc = parse(data)
        except ValueError as exc:
            raise CorruptCheckpoint(f"{where}: {exc}") from exc
        if not isinstance(doc, dict) or not isinstance(doc.get("run_id"), str):
            raise CorruptCheckpoint(f"{where} does not describe a run")
        if doc.get("format") != FORMAT:
            raise ConfigurationError(
                f"{where} has format {doc.get('format')}, this version reads {FORMAT}: use a newer holdfast"
            )
        return doc

    # Attempts

    def claim_attempt(self) -> Attempt:
        """Take the next attempt number, which no other caller gets.

        The claim is created first and the others are listed after: of any two claims of one number, the later
        one sees the earlier and leaves the number to it. So this holds even where creation is not exclusive.
        """
        nonce = secrets.token_hex(8)
        for tries in range(_CLAIM_TRIES):
            number = catalog.next_attempt(self.store.list())
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
                return Attempt(number, nonce)
            time.sleep(random.uniform(0.0, 0.01 * 2 ** min(tries, 7)))  # both may have left it to the other
        raise StorageError(
            f"{self.store.url}: {_CLAIM_TRIES} attempt numbers were taken by others: try again"
        )

    def newest_attempt(self) -> int:
        """The highest attempt number claimed; 0 if there is none."""
        return max((a.number for a in self._attempt_files()), default=0)

    def record_base(self, attempt: Attempt, base: Base | None) -> None:
        """State where `attempt` goes on from, and with it which earlier attempts count up to which step.

        From here on this alone decides which checkpoints are valid. Raises CheckpointError if `base` is on no
        line of history that was recorded.
        """
        chain = catalog.extend(base, {})
        for record in self._base_records():
            if chain is not None:
                break
            if record.number < attempt.number:
                chain = catalog.extend(base, {record.number: self._read_chain(record)})
        if chain is None:
            assert base is not None
            raise CheckpointError(
                f"{self.store.url}: step {base.step} of attempt {base.attempt} is on no recorded line"
            )
        doc = {
            "format": FORMAT,
            "attempt": attempt.number,
            "nonce": attempt.nonce,
            "base": base.to_json() if base else None,
            "chain": [link.to_json() for link in chain],
        }
        key = catalog.attempt_key(attempt.number, attempt.nonce, ".base")
        data = canonical(doc)
        if not self.store.create(key, data) and self.store.read(key) != data:
            raise CheckpointError(f"{self.store.url}/{key}: the attempt has recorded another base before")

    def stands(self, base: Base) -> bool:
        """Whether a state found elsewhere, at this step of this attempt, is on the newest line of history."""
        number, chain = self._line()
        return catalog.is_valid(base.attempt, base.step, chain, number)

    def based_attempts(self) -> set[int]:
        """The attempts that have recorded their base, as every attempt does before it trains."""
        return {record.number for record in self._base_records()}

    def _attempt_files(self) -> list[catalog.AttemptFile]:
        found = (catalog.parse_attempt(key) for key in self.store.list(catalog.ATTEMPTS))
        return sorted((a for a in found if a), key=lambda a: (a.number, a.nonce))

    def _base_records(self) -> list[catalog.AttemptFile]:
        """Newest first."""
        return [a for a in reversed(self._attempt_files()) if a.kind == ".base"]

    def _read_chain(self, record: catalog.AttemptFile) -> Chain:
        key = catalog.attempt_key(record.number, record.nonce, record.kind)
        try:
            doc = fields(parse(self.store.read(key)), "base record", _BASE_KINDS)
            return tuple(Base.from_json(link, "link of the chain") for link in doc["chain"])
        except ValueError as exc:
            raise CorruptCheckpoint(f"{self.store.url}/{key}: {exc}") from exc

    def _line(self) -> tuple[int, Chain] | tuple[None, None]:
        """The newest attempt that has recorded its base, and its chain."""
        for record in self._base_records():
            return record.number, self._read_chain(record)
        return None, None

    # Checkpoints

    def entries(self) -> list[Entry]:
        """Every checkpoint directory with what it is worth, in (step, attempt) order."""
        return self._entries(self.store.list(catalog.CHECKPOINTS), *self._line())

    def latest(self) -> Entry | None:
        """The checkpoint to resume from; None if there is no valid complete one."""
        return next(self.candidates(), None)

    def candidates(self) -> Iterator[Entry]:
        """The valid complete checkpoints, newest first: the next is there to fall back to."""
        number, chain = self._line()
        found = catalog.by_directory(self.store.list(catalog.CHECKPOINTS))
        named = [(catalog.parse_directory(directory), directory) for directory in found]
        is_first = True
        for name, directory in sorted(named, reverse=True):
            assert name is not None
            if not catalog.is_valid(name[1], name[0], chain, number):
                continue
            entry = self._judge(directory, found[directory], number, chain)
            if entry.status == "complete":
                yield replace(entry, status="latest") if is_first else entry
                is_first = False

    def retain(self, keep: int) -> list[str]:
        """Delete the valid complete checkpoints beyond the `keep` newest; returns their directories.

        What the newest attempt started from stays. The manifest goes first, so what a crash leaves behind is
        incomplete.
        """
        listing = self.store.list(catalog.CHECKPOINTS)
        number, chain = self._line()
        entries = self._entries(listing, number, chain)
        base = chain[-1] if chain else None
        protected = {e.directory for e in entries if base == Base(e.step, e.attempt)}
        deleted = []
        for entry in catalog.to_delete(entries, keep, protected):
            self.store.delete([f"{entry.directory}/{MANIFEST}"])
            self.store.delete(key for key in listing if key.startswith(f"{entry.directory}/"))
            self._manifests.pop(entry.directory, None)
            deleted.append(entry.directory)
        return deleted

    def _entries(self, listing: dict[str, int], number: int | None, chain: Chain | None) -> list[Entry]:
        found = catalog.by_directory(listing)
        entries = [self._judge(directory, sizes, number, chain) for directory, sizes in found.items()]
        latest = catalog.latest(entries)
        return [replace(e, status="latest") if e is latest else e for e in entries]

    def _judge(self, directory: str, sizes: dict[str, int], number: int | None, chain: Chain | None) -> Entry:
        manifest, reason = None, ""
        if MANIFEST in sizes:
            try:
                manifest = self._manifest(directory)
            except (CorruptCheckpoint, ObjectMissing) as exc:  # missing: deleted since it was listed
                reason = str(exc)
        identity = self.identity()
        return catalog.judge(
            directory,
            sizes,
            manifest,
            reason,
            chain=chain,
            newest_attempt=number,
            run_id=identity["run_id"] if identity else None,
        )

    def _manifest(self, directory: str) -> Manifest:
        if directory not in self._manifests:
            self._manifests[directory] = Manifest.parse(self.store.read(f"{directory}/{MANIFEST}"))
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

    def write_journal(self, attempt: Attempt, lines: Sequence[dict[str, Any]]) -> None:
        """Replace the attempt's journal by `lines`, one event each."""
        data = b"".join(canonical(spelled(line)) + b"\n" for line in lines)
        self.store.write(catalog.journal_key(attempt.number, attempt.nonce), (data,))

    def journal(self) -> list[dict[str, Any]]:
        """The events of all attempts, in the order of attempts."""
        keys = catalog.journals(self.store.list(catalog.JOURNAL))
        return [line for key in keys for line in self._json_lines(key)]

    def _json_lines(self, key: str) -> list[dict[str, Any]]:
        try:
            lines = [parse(line) for line in self.store.read(key).splitlines()]
        except ValueError as exc:
            raise CorruptCheckpoint(f"{self.store.url}/{key}: {exc}") from exc
        if not all(isinstance(line, dict) for line in lines):
            raise CorruptCheckpoint(f"{self.store.url}/{key}: a line is not an object")
        return lines


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
