"""Decides from a listing what a run directory holds: complete, valid, latest, what to delete.

This is the one place where these words are defined; resume, listing and retention all ask here. Order is
(step, attempt), never time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from storage.manifest import MANIFEST, Base, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CHECKPOINTS = "checkpoints"
ATTEMPTS = "attempts"
JOURNAL = "journal"
METRICS = "metrics"
LOGS = "logs"
QUARANTINE = "quarantine"
PINS = "pins"
VERIFIED = "verified"

Chain: TypeAlias = tuple[Base, ...]
"""The line of history an attempt stands on: for each earlier attempt the last step that counts, in order."""

Status: TypeAlias = Literal["latest", "complete", "incomplete", "invalid", "quarantined"]

MAX_STEP = 10**12 - 1
MAX_ATTEMPT = 10**8 - 1

# [0-9] and not \d, which means the digits of every script
_DIRECTORY = re.compile(rf"{CHECKPOINTS}/step-([0-9]{{12}})-a([0-9]{{8}})-([0-9a-f]{{8,32}})")
_ATTEMPT = re.compile(rf"{ATTEMPTS}/([0-9]{{8}})-([0-9a-f]{{8,32}})(\.base|\.alive)?\.json")
_METRICS = re.compile(rf"{METRICS}/a([0-9]{{8}})-([0-9a-f]{{8,32}})-([0-9]{{12}})-([0-9]{{12}})\.parquet")
_LOGS = re.compile(rf"{LOGS}/a([0-9]{{8}})-[0-9a-f]{{8,32}}-[0-9]{{6}}\.jsonl")
_JOURNAL = re.compile(rf"{JOURNAL}/a([0-9]{{8}})-([0-9a-f]{{8,32}})\.jsonl")


@dataclass(frozen=True, slots=True)
class AttemptFile:
    """What the name of an object below attempts/ says; `kind` is "", ".base" or ".alive"."""

    number: int
    nonce: str
    kind: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint directory. `reason` says in words why it is incomplete or invalid, else it is ""."""

    step: int
    attempt: int
    nonce: str
    directory: str
    nbytes: int
    status: Status
    reason: str = ""
    manifest: Manifest | None = None
    committed: bool = True
    """Whether there is a manifest, readable or not: it once was complete."""

    @property
    def order(self) -> tuple[int, int, str]:
        """What entries are sorted by; of two tries at the same place, the nonce decides."""
        return (self.step, self.attempt, self.nonce)


def directory_name(step: int, attempt: int, nonce: str) -> str:
    """Where one try at one checkpoint is stored, relative to the run directory."""
    name = f"{CHECKPOINTS}/step-{step:012d}-a{attempt:08d}-{nonce}"
    if not _DIRECTORY.fullmatch(name):
        raise ValueError(f"step {step}, attempt {attempt}, nonce {nonce!r} make no directory name")
    return name


def parse_directory(directory: str) -> tuple[int, int, str] | None:
    """(step, attempt, nonce) of a checkpoint's directory; None for any other name."""
    match = _DIRECTORY.fullmatch(directory)
    return (int(match[1]), int(match[2]), match[3]) if match else None


def attempt_key(number: int, nonce: str, kind: str = "") -> str:
    """Key of a file of an attempt; `kind` is "", ".base" or ".alive"."""
    key = f"{ATTEMPTS}/{number:08d}-{nonce}{kind}.json"
    if not _ATTEMPT.fullmatch(key):
        raise ValueError(f"attempt {number}, nonce {nonce!r} make no key")
    return key


def parse_attempt(key: str) -> AttemptFile | None:
    """What the key of an attempt's file says; None for any other key."""
    match = _ATTEMPT.fullmatch(key)
    return AttemptFile(int(match[1]), match[2], match[3] or "") if match else None


def journal_key(number: int, nonce: str) -> str:
    """Key of the journal of an attempt."""
    return f"{JOURNAL}/a{number:08d}-{nonce}.jsonl"


def metrics_key(number: int, nonce: str, first: int, last: int) -> str:
    """Key of a part of the metrics of an attempt: those of steps from `first` to `last`."""
    return f"{METRICS}/a{number:08d}-{nonce}-{first:012d}-{last:012d}.parquet"


def parse_metrics(key: str) -> tuple[int, int, int] | None:
    """(attempt, first step, last step) of a part of the metrics; None for any other key."""
    match = _METRICS.fullmatch(key)
    return (int(match[1]), int(match[3]), int(match[4])) if match else None


def logs_key(number: int, nonce: str, part: int) -> str:
    """Key of a part of what the processes of an attempt printed."""
    return f"{LOGS}/a{number:08d}-{nonce}-{part:06d}.jsonl"


def parse_logs(key: str) -> int | None:
    """The attempt that stored a part of the logs; None for any other key."""
    match = _LOGS.fullmatch(key)
    return int(match[1]) if match else None


def divergence_key(step: int, attempt: int) -> str:
    """Key of what is kept of a divergence at a step."""
    return f"divergence/step-{step:012d}-a{attempt:08d}.json"


def journals(keys: Iterable[str]) -> list[str]:
    """The keys that are journals, by attempt."""
    return sorted(key for key in keys if _JOURNAL.fullmatch(key))


def attempt_of_journal(key: str) -> int:
    """The attempt of a journal's key."""
    match = _JOURNAL.fullmatch(key)
    assert match is not None, key
    return int(match[1])


def record_key(kind: str, directory: str) -> str:
    """Key of what is on record about a checkpoint; `kind` is QUARANTINE, PINS or VERIFIED."""
    if not _DIRECTORY.fullmatch(directory):
        raise ValueError(f"{directory!r} is not the directory of a checkpoint")
    return f"{kind}/{directory.removeprefix(CHECKPOINTS + '/')}.json"


def recorded(kind: str, keys: Iterable[str]) -> set[str]:
    """The checkpoint directories that the keys of records of a kind are about."""
    found = (f"{CHECKPOINTS}/{key.removeprefix(kind + '/').removesuffix('.json')}" for key in keys)
    return {directory for directory in found if _DIRECTORY.fullmatch(directory)}


def next_attempt(keys: Iterable[str]) -> int:
    """One above every attempt number in the keys and directories of a run; 1 for a new one.

    Checkpoints and journals count too, so that a number is not used again when its claim was lost.
    """
    highest = 0
    for key in keys:
        directory = _DIRECTORY.match(key)
        if directory:
            highest = max(highest, int(directory[2]))
        elif match := _ATTEMPT.fullmatch(key) or _JOURNAL.fullmatch(key):
            highest = max(highest, int(match[1]))
    return highest + 1


def is_valid(attempt: int, step: int, chain: Chain | None, newest_attempt: int | None) -> bool:
    """Whether a state at (attempt, step) is on the line of the newest base record.

    `newest_attempt` is the attempt that made that record and `chain` what it says; both None where no
    attempt has made one yet: then nothing counts.
    """
    if chain is None or newest_attempt is None:
        return False
    return attempt == newest_attempt or any(b.attempt == attempt and step <= b.step for b in chain)


def extend(base: Base | None, records: Mapping[int, Chain]) -> Chain | None:
    """The chain of an attempt that goes on from `base`, given the chains of earlier attempts by number.

    It is cut from the newest record whose line contains `base`; None if no line contains it.
    """
    if base is None:
        return ()
    for number in sorted(records, reverse=True):
        chain = records[number]
        if base.attempt == number:
            return (*chain, base)
        for i, link in enumerate(chain):
            if link.attempt == base.attempt and base.step <= link.step:
                return (*chain[:i], base)
    return None


def incompleteness(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """Which object of the manifest is missing or has another size, in words; "" if none."""
    for key, info in manifest.objects.items():
        if key not in sizes:
            return f"{key} is missing"
        if sizes[key] != info.nbytes:
            return f"{key} has {sizes[key]} bytes, not {info.nbytes}"
    return ""


def judge(
    directory: str,
    sizes: Mapping[str, int],
    manifest: Manifest | None,
    reason: str,
    *,
    chain: Chain | None,
    newest_attempt: int | None,
    run_id: str | None,
    quarantined: bool = False,
) -> Entry:
    """The entry of one directory, with the reason where it does not count; none of them is the latest yet.

    `manifest` is None where it is not there or `reason` says why it cannot be read.
    """
    named = parse_directory(directory)
    assert named is not None, directory
    step, attempt, nonce = named
    status: Status = "incomplete"
    if manifest is None:
        reason = reason or (f"no {MANIFEST}: never committed" if MANIFEST not in sizes else "unreadable")
    elif quarantined:
        status, reason = "quarantined", "it was found damaged"
    elif (manifest.step, manifest.attempt, manifest.nonce) != named:
        reason = "its manifest belongs to another directory"
    elif reason := incompleteness(manifest, sizes):
        pass
    elif run_id is not None and manifest.run_id != run_id:
        status, reason = "invalid", f"it belongs to run {manifest.run_id[:80]!r}"
    elif not is_valid(attempt, step, chain, newest_attempt):
        status, reason = (
            "invalid",
            f"attempt {attempt} at step {step} is not on the line of attempt {newest_attempt}",
        )
    else:
        status = "complete"
    committed = MANIFEST in sizes
    return Entry(step, attempt, nonce, directory, sum(sizes.values()), status, reason, manifest, committed)


def latest(entries: Iterable[Entry]) -> Entry | None:
    """The valid complete entry of highest (step, attempt)."""
    return max(
        (e for e in entries if e.status in ("complete", "latest")), key=lambda e: e.order, default=None
    )
