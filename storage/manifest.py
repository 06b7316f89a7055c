"""What a checkpoint consists of: the document whose presence commits it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from storage.errors import ConfigurationError, CorruptCheckpoint
from storage.layout import DTYPES, MAX_LENGTH, check_name
from storage.strict_json import (
    MAX_DEPTH,
    MAX_VALUES,
    NOT_FINITE,
    canonical,
    fields,
    most_values,
    parse,
    spelled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FORMAT = 1
MANIFEST = "manifest.json"
"""Key of the manifest inside a checkpoint's directory."""

TABLE = "objects.json"
"""Key of the table of objects where it would make the manifest too large to be created with one request."""

MAX_NBYTES = 4 << 20
MAX_TABLE_NBYTES = 32 << 20
MAX_OBJECTS = 200_000
MAX_VALUES_NBYTES = 1 << 20
"""Of counters, of metadata, of metrics: each is to leave room for the others."""

_NONCE = re.compile(r"[0-9a-f]{8,32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Size and BLAKE3 (hex) of one stored object."""

    nbytes: int
    blake3: str

    def __post_init__(self) -> None:
        if not 0 <= self.nbytes <= MAX_LENGTH:
            raise ValueError(f"object size {self.nbytes} is out of range")
        if not _DIGEST.fullmatch(self.blake3):
            raise ValueError(f"{self.blake3[:80]!r} is not a BLAKE3 digest")

    @classmethod
    def of(cls, data: bytes) -> ObjectInfo:
        """Size and digest of `data`."""
        return cls(len(data), blake3(data).hexdigest())

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"bytes": self.nbytes, "blake3": self.blake3}

    @classmethod
    def from_json(cls, obj: object, where: str = "object") -> ObjectInfo:
        """What `to_json` wrote, else ValueError."""
        doc = fields(obj, where, {"bytes": int, "blake3": str})
        return cls(doc["bytes"], doc["blake3"])


@dataclass(frozen=True, slots=True)
class Base:
    """A place in a run's history: what stood after `step` steps, in the line of attempt `attempt`."""

    step: int
    attempt: int

    def __post_init__(self) -> None:
        if not 0 <= self.step <= MAX_LENGTH or not 0 <= self.attempt <= MAX_LENGTH:
            raise ValueError(f"step {self.step} or attempt {self.attempt} is out of range")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"step": self.step, "attempt": self.attempt}

    @classmethod
    def from_json(cls, obj: object, where: str = "base") -> Base:
        """What `to_json` wrote, else ValueError."""
        doc = fields(obj, where, {"step": int, "attempt": int})
        return cls(doc["step"], doc["attempt"])


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """One state array as the manifest lists it; `layout` is the fingerprint of its layout."""

    name: str
    dtype: str
    length: int
    layout: str

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name}: dtype {self.dtype[:80]!r} is not known")
        if not 0 <= self.length <= MAX_LENGTH:
            raise ValueError(f"{self.name}: length {self.length} is out of range")
        if not _DIGEST.fullmatch(self.layout):
            raise ValueError(f"{self.name}: {self.layout[:80]!r} is not a layout fingerprint")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a reader must know of a checkpoint.

    `arrays` are in the order in which `state_digest` runs over them. `counters` are JSON values that are part
    of the state, `metadata` what the user adds; `metrics` may be NaN or infinite. `created_at` is the time of
    the commit by the clock of who made it (ISO 8601), which `created_by` names.
    """

    run_id: str
    attempt: int
    nonce: str
    step: int
    parent: Base | None
    arrays: tuple[ArrayInfo, ...]
    objects: Mapping[str, ObjectInfo]
    state_digest: str
    counters: Mapping[str, Any]
    metrics: Mapping[str, float]
    fingerprint: Mapping[str, Any]
    versions: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""
    created_by: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format {self.format} is not known, this version reads {FORMAT}")
        Base(self.step, self.attempt)
        if not _NONCE.fullmatch(self.nonce):
            raise ValueError(f"{self.nonce[:80]!r} is not a nonce")
        if not _DIGEST.fullmatch(self.state_digest):
            raise ValueError("state_digest is not a BLAKE3 digest")
        if len({a.name for a in self.arrays}) != len(self.arrays):
            raise ValueError("two arrays have the same name")
        if len(self.objects) > MAX_OBJECTS:
            raise ValueError(f"{len(self.objects)} objects, more than the {MAX_OBJECTS} allowed")
        for key in self.objects:
            check_name(key)

    @property
    def nbytes(self) -> int:
        """Bytes of all objects listed."""
        return sum(info.nbytes for info in self.objects.values())

    def to_bytes(self) -> tuple[bytes, bytes | None]:
        """The document and, if it would be too large with it, its table of objects apart.

        Canonical JSON with the document's own BLAKE3 as "self". ConfigurationError for what could not be read
        again, and where even that is too large.
        """
        doc = self._to_json()
        data, table = _signed(doc), None
        if len(data) > MAX_NBYTES or most_values(data) > MAX_VALUES:
            table = canonical(doc["objects"])
            data = _signed({**doc, "objects": {}, "table": ObjectInfo.of(table).to_json()})
        if len(data) > MAX_NBYTES or len(table or b"") > MAX_TABLE_NBYTES:
            raise ConfigurationError(f"manifest of {len(data)} bytes, more than the {MAX_NBYTES} allowed")
        if most_values(data) > MAX_VALUES:
            raise ConfigurationError(f"counters, metrics and metadata of more than {MAX_VALUES} values")
        return data, table

    @classmethod
    def parse(cls, data: bytes, read_table: Callable[[int], bytes] | None = None) -> Manifest:
        """The manifest that `to_bytes` wrote; CorruptCheckpoint names the fault of anything else.

        `read_table` reads the table of objects, of which at most so many bytes are wanted, where it lies
        apart.
        """
        try:
            doc = fields(parse(data, max_nbytes=MAX_NBYTES), "manifest", _KINDS)
            own = doc.pop("self")
            if own != blake3(canonical(doc)).hexdigest():
                raise ValueError("its content does not match its own digest")  # noqa: TRY301
            if data != canonical({**doc, "self": own}):
                raise ValueError("not as this version writes it")  # noqa: TRY301
            if doc["table"] is not None:
                doc["objects"] = _read_table(ObjectInfo.from_json(doc["table"], "table"), read_table)
            return cls._from_json(doc)
        except ValueError as exc:
            raise CorruptCheckpoint(f"manifest: {exc}") from exc

    def _to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "run_id": self.run_id,
            "attempt": self.attempt,
            "nonce": self.nonce,
            "step": self.step,
            "parent": self.parent.to_json() if self.parent else None,
            "arrays": [
                {"name": a.name, "dtype": a.dtype, "length": a.length, "layout": a.layout}
                for a in self.arrays
            ],
            "objects": {key: info.to_json() for key, info in self.objects.items()},
            "state_digest": self.state_digest,
            "counters": json_values("counters", self.counters),
            "metrics": spelled(numbers("metrics", self.metrics)),
            "fingerprint": json_values("fingerprint", self.fingerprint),
            "versions": dict(self.versions),
            "metadata": json_values("metadata", self.metadata),
            "created_at": self.created_at,
            "created_by": dict(self.created_by),
            "table": None,
        }

    @classmethod
    def _from_json(cls, doc: dict[str, Any]) -> Manifest:
        kinds = {"name": str, "dtype": str, "length": int, "layout": str}
        arrays = tuple(ArrayInfo(**fields(a, f"array {i}", kinds)) for i, a in enumerate(doc["arrays"]))
        for name, version in doc["versions"].items():
            if not isinstance(version, str):
                raise ValueError(f"version of {name} is not a string")  # noqa: TRY004 - a fault of the document
        return cls(
            format=doc["format"],
            run_id=doc["run_id"],
            attempt=doc["attempt"],
            nonce=doc["nonce"],
            step=doc["step"],
            parent=None if doc["parent"] is None else Base.from_json(doc["parent"], "parent"),
            arrays=arrays,
            objects={key: ObjectInfo.from_json(o, f"object {key}") for key, o in doc["objects"].items()},
            state_digest=doc["state_digest"],
            counters=doc["counters"],
            metrics={name: _number_from_json(x, name) for name, x in doc["metrics"].items()},
            fingerprint=doc["fingerprint"],
            versions=doc["versions"],
            metadata=doc["metadata"],
            created_at=doc["created_at"],
            created_by=doc["created_by"],
        )


_KINDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "run_id": str,
    "attempt": int,
    "nonce": str,
    "step": int,
    "parent": (dict, type(None)),
    "arrays": list,
    "objects": dict,
    "state_digest": str,
    "counters": dict,
    "metrics": dict,
    "fingerprint": dict,
    "versions": dict,
    "metadata": dict,
    "created_at": str,
    "created_by": dict,
    "table": (dict, type(None)),
    "self": str,
}


def json_values(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as a manifest will give them back: keys are strings, tuples lists.

    Raises ConfigurationError, naming `what` they are, for what JSON has no word for or a reader would refuse:
    a manifest is created to be read.
    """
    try:
        found: dict[str, Any] = parse(
            canonical(dict(values)), max_nbytes=MAX_VALUES_NBYTES, max_depth=MAX_DEPTH - 1
        )
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigurationError(f"{what}: {exc}: give JSON values by name") from exc
    return found


def numbers(what: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The values as floats by name; ConfigurationError, naming `what` they are, for any other."""
    found = {}
    try:
        for name, value in dict(values).items():
            if not isinstance(name, str):
                raise TypeError(f"{name!r} is not a name")  # noqa: TRY301
            found[name] = float(value)
        json_values(what, spelled(found))
    except (TypeError, ValueError, OverflowError) as exc:
        raise ConfigurationError(f"{what}: {exc}: give numbers by name") from exc
    return found


def _signed(doc: dict[str, Any]) -> bytes:
    return canonical({**doc, "self": blake3(canonical(doc)).hexdigest()})


def _read_table(info: ObjectInfo, read: Callable[[int], bytes] | None) -> Any:
    if info.nbytes > MAX_TABLE_NBYTES or read is None:
        raise ValueError(f"a table of {info.nbytes} bytes, more than the {MAX_TABLE_NBYTES} allowed")
    data = read(info.nbytes + 1)
    if ObjectInfo.of(data) != info:
        raise ValueError(f"{TABLE} does not match its digest")
    table = parse(data, max_nbytes=MAX_TABLE_NBYTES, max_values=_most_in_table(data))
    if not isinstance(table, dict):
        raise ValueError(f"{TABLE} is not an object")  # noqa: TRY004 - a fault of the document
    return table


def _most_in_table(data: bytes) -> int:
    """The most `most_values` of a table of objects: six for each, whose digest alone makes it 84 bytes."""
    return 1000 + len(data) // 14


def _number_from_json(x: object, name: str) -> float:
    if isinstance(x, str) and x in NOT_FINITE:
        return NOT_FINITE[x]
    if isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= sys.float_info.max:
        return float(x)
    raise ValueError(f"metric {name} is not a number")
