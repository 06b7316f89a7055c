"""Named variables in flat buffers: where each one lies, as what shape.

A state is a tuple of `StateArray`, in order: one flat array each for the parameters and for every slot of
the optimizer. A `Layout` says where in such an array the variables are.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from storage.strict_json import canonical, fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

ALIGNMENT = 16
"""Elements to which every variable's offset and the length are rounded up: 64 bytes of float32."""

CHUNK = 1 << 20
"""Elements of an inner chunk at most."""

DTYPES = {
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
}
"""Element types a state array can have, and their size in bytes."""

STORED_AS = {"bfloat16": "uint16", "bool": "uint8"}
"""Further types of variables, which arrays of these types hold bit for bit."""

MAX_LENGTH = 1 << 48
"""Elements: more than any machine holds, and safe in every integer type on the way."""

BLOCK_NBYTES = 4 << 20
"""Bytes of a digest block. Shards begin at multiples of it, so no block lies in two of them."""

_CHUNK_UNIT = 1024
_MAX_NDIM = 32
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}"
_NAME = re.compile(rf"{_SEGMENT}(/{_SEGMENT}){{0,15}}")
_READ_SEGMENT = r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,254}"
_READ_KEY = re.compile(rf"{_READ_SEGMENT}(/{_READ_SEGMENT}){{0,63}}")


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is 1 to 16 segments of letters, digits, `_`, `.`, `-`, joined by `/`.

    Names become parts of object keys, so none can leave its directory: no segment starts with a dot.
    """
    if len(name) > 512 or not _NAME.fullmatch(name):
        raise ValueError(
            f"bad name {name[:80]!r}: use letters, digits, '_', '.' and '-', joined by '/', "
            "no part starting with '.' or '-'"
        )


def check_key(key: str) -> None:
    """Raise ValueError unless an object of this name may be read: one that others wrote, as others name them.

    Spaces, `=` and letters of any script may be in it, but it cannot leave its directory, or be hidden.
    """
    if len(key) > 1024 or not _READ_KEY.fullmatch(key):
        raise ValueError(f"bad key {key[:80]!r}: give parts joined by '/', none of them starting with '.'")


def names_above(name: str) -> list[str]:
    """The names that it lies below, the outermost first: of "a/b/c" they are "a" and "a/b"."""
    return [name[:i] for i, letter in enumerate(name) if letter == "/"]


@dataclass(frozen=True, slots=True)
class Variable:
    """One named array inside a flat buffer; `offset` counts elements."""

    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: str = "float32"
    trainable: bool = True

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.dtype not in DTYPES and self.dtype not in STORED_AS:
            raise ValueError(
                f"{self.name}: dtype {self.dtype!r} is not one of {', '.join((*DTYPES, *STORED_AS))}"
            )
        if len(self.shape) > _MAX_NDIM or any(n < 0 for n in self.shape):
            raise ValueError(f"{self.name}: bad shape {self.shape}")
        if self.offset < 0 or self.offset + self.size > MAX_LENGTH:
            raise ValueError(f"{self.name}: offset {self.offset}, shape {self.shape} out of range")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """The variables of a flat buffer in ascending order, and its length in elements.

    Elements between variables, and behind the last, belong to none and hold zeros.
    """

    variables: tuple[Variable, ...]
    length: int

    def __post_init__(self) -> None:
        names: set[str] = set()
        end = 0
        for v in self.variables:
            if v.name in names:
                raise ValueError(f"two variables are named {v.name!r}")
            if v.offset < end:
                raise ValueError(
                    f"{v.name} at {v.offset} overlaps the variable before it, which ends at {end}"
                )
            names.add(v.name)
            end = v.offset + v.size
        if not end <= self.length <= MAX_LENGTH:
            raise ValueError(f"length {self.length} does not hold the variables, which end at {end}")

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        """The layout of float32 variables in the order given, each at the next aligned offset."""
        variables = []
        end = 0
        for name, shape in shapes.items():
            variable = Variable(name, end, tuple(shape))
            variables.append(variable)
            end = round_up(end + variable.size, ALIGNMENT)
        return cls(tuple(variables), end)

    def views(self, flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Each variable as a view of `flat`, which is 1-D, contiguous and at least `length` long."""
        if flat.ndim != 1 or len(flat) < self.length or not flat.flags.c_contiguous:
            raise ValueError(f"need a contiguous 1-D buffer of {self.length} elements, not {flat.shape}")
        return {v.name: flat[v.offset : v.offset + v.size].reshape(v.shape) for v in self.variables}

    @property
    def fingerprint(self) -> str:
        """BLAKE3, in hex, of the canonical JSON."""
        return blake3(canonical(self.to_json())).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The layout as JSON values."""
        return {
            "length": self.length,
            "variables": [
                {
                    "name": v.name,
                    "offset": v.offset,
                    "shape": list(v.shape),
                    "dtype": v.dtype,
                    "trainable": v.trainable,
                }
                for v in self.variables
            ],
        }

    @classmethod
    def from_json(cls, obj: object) -> Layout:
        """The layout that `to_json` wrote; ValueError names what is wrong with any other value."""
        doc = fields(obj, "layout", {"length": int, "variables": list})
        kinds = {"name": str, "offset": int, "shape": list, "dtype": str, "trainable": bool}
        variables = []
        for i, item in enumerate(doc["variables"]):
            v = fields(item, f"variable {i} of the layout", kinds)
            if not all(type(n) is int for n in v["shape"]):
                raise ValueError(f"variable {i} of the layout: shape is not a list of integers")
            variables.append(Variable(v["name"], v["offset"], tuple(v["shape"]), v["dtype"], v["trainable"]))
        return cls(tuple(variables), doc["length"])

    def differences(self, other: Layout) -> list[str]:
        """Everything in which `other` differs, one line each; [] if they are equal."""
        if self == other:
            return []
        here = {v.name: v for v in self.variables}
        there = {v.name: v for v in other.variables}
        found = []
        for name, v in here.items():
            w = there.get(name)
            if w is None:
                found.append(f"{name}: {v.dtype} of shape {v.shape} here, missing there")
                continue
            for key in ("shape", "dtype", "trainable"):
                a, b = getattr(v, key), getattr(w, key)
                if a != b:
                    found.append(f"{name}: {key} {a} here, {b} there")
        found += [
            f"{name}: missing here, {v.dtype} of shape {v.shape} there"
            for name, v in there.items()
            if name not in here
        ]
        if found:
            return found
        for name, v in here.items():
            if v.offset != there[name].offset:
                return [f"{name}: offset {v.offset} here, {there[name].offset} there"]
        for a, b in zip(here, there, strict=True):
            if a != b:  # empty variables can share an offset
                return [f"{a} here comes where {b} comes there"]
        return [f"length {self.length} here, {other.length} there"]


@dataclass(frozen=True, slots=True)
class StateArray:
    """One flat array of a state, such as "params" or "slots/adam_m"."""

    name: str
    layout: Layout
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")

    @property
    def length(self) -> int:
        """Elements without padding: what the stored array's shape says."""
        return self.layout.length

    @property
    def chunk(self) -> int:
        """Elements of an inner chunk."""
        return min(CHUNK, max(_CHUNK_UNIT, round_up(self.length, _CHUNK_UNIT)))

    @property
    def padded_length(self) -> int:
        """Elements of the buffer in memory: whole inner chunks, zeros behind `length`."""
        return round_up(self.length, self.chunk)

    @property
    def nbytes(self) -> int:
        """Bytes of the padded buffer."""
        return self.padded_length * self.itemsize

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype]

    @property
    def unit(self) -> int:
        """Elements that are read, checked and given to writers as one: whole chunks and digest blocks."""
        return max(self.chunk, BLOCK_NBYTES // self.itemsize)

    @property
    def num_blocks(self) -> int:
        """Digest blocks of the array, padding left out."""
        return -(-self.length * self.itemsize // BLOCK_NBYTES)

    def dtype_of(self, variable: Variable) -> str:
        """What the variable's elements are: the array's type, or what it holds bit for bit."""
        return variable.dtype if STORED_AS.get(variable.dtype) == self.dtype else self.dtype

    def to_json(self) -> dict[str, Any]:
        """The array's description as JSON values."""
        return {"name": self.name, "dtype": self.dtype, "layout": self.layout.to_json()}

    @classmethod
    def from_json(cls, obj: object) -> StateArray:
        """The description that `to_json` wrote; ValueError names what is wrong with any other value."""
        doc = fields(obj, "state array", {"name": str, "dtype": str, "layout": dict})
        return cls(doc["name"], Layout.from_json(doc["layout"]), doc["dtype"])


def round_up(n: int, unit: int) -> int:
    """The smallest multiple of `unit` that is at least `n`."""
    return -(-n // unit) * unit
