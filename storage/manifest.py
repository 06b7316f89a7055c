"""What a checkpoint consists of: the document whose presence commits it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from storage.errors import CorruptCheckpoint
from storage.layout import DTYPES, MAX_LENGTH, check_name
from storage.strict_json import canonical, fields, parse, spelled

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
MANIFEST = "manifest.json"
"""Key of the manifest inside a checkpoint's directory."""

MAX_NBYTES = 16 << 20
MAX_OBJECTS = 200_000

_NONCE = re.compile(r"[0-9a-f]{8,32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as Zarr spells them


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
    of the state; `metrics` may be NaN or infinite.
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

    def to_bytes(self) -> bytes:
        """Canonical JSON with the document's own BLAKE3 as "self"; ValueError if it exceeds MAX_NBYTES."""
        doc = self._to_json()
        doc["self"] = blake3(canonical(doc)).hexdigest()
        data = canonical(doc)
        if len(data) > MAX_NBYTES:
            raise ValueError(f"manifest of {len(data)} bytes, more than the {MAX_NBYTES} allowed")
        return data

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """The manifest that `to_bytes` wrote; CorruptCheckpoint names the fault of anything else."""
        try:
            doc = fields(parse(data, max_nbytes=MAX_NBYTES), "manifest", _KINDS)
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
            "counters": dict(self.counters),
            "metrics": {name: spelled(float(x)) for name, x in self.metrics.items()},
            "fingerprint": dict(self.fingerprint),
            "versions": dict(self.versions),
        }

    @classmethod
    def _from_json(cls, doc: dict[str, Any]) -> Manifest:
        digest = doc.pop("self")
        if digest != blake3(canonical(doc)).hexdigest():
            raise ValueError("its content does not match its own digest")
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
    "self": str,
}


def _number_from_json(x: object, name: str) -> float:
    if isinstance(x, str) and x in _NOT_FINITE:
        return _NOT_FINITE[x]
    if isinstance(x, int | float) and not isinstance(x, bool):
        return float(x)
    raise ValueError(f"metric {name} is not a number")
