"""Hugging Face's `.safetensors` by its own library, which checks what is in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError, CorruptCheckpoint
from storage.naming import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

LENGTH_NBYTES = 8
MAX_HEADER_NBYTES = 100_000_000
"""What the library reads."""

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""What the format calls each type."""

_NAMES = {code: name for name, code in DTYPES.items()}


def written(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The arrays as a file. ConfigurationError for a dtype that the format does not have."""
    _library()
    from safetensors.numpy import save

    given = {}
    for name, array in arrays.items():
        values = np.asarray(array)
        if values.dtype.name not in DTYPES or name == "__metadata__":
            raise ConfigurationError(f"{name}: {values.dtype} cannot be kept as .safetensors")
        given[name] = np.ascontiguousarray(values).reshape(values.shape)
    found: bytes = save(given, metadata={"format": "np"})
    return found


def read(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name. Raises CorruptCheckpoint for damage and for types that NumPy lacks."""
    library = _library()
    try:
        found = library.deserialize(data)
    except library.SafetensorError as exc:
        raise CorruptCheckpoint(f"{where} is no .safetensors file, or is damaged: {exc}") from exc
    arrays = {}
    for name, entry in found:
        if entry["dtype"] not in _NAMES:
            raise CorruptCheckpoint(f"{where}: {name} is {entry['dtype']}, which cannot be read here")
        dtype = numpy_dtype(_NAMES[entry["dtype"]])
        arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return arrays


def looks_like(head: bytes, nbytes: int) -> bool:
    """Whether a file of this size may begin so: with the length of a header, and the header in JSON."""
    length = int.from_bytes(head[:LENGTH_NBYTES], "little")
    begins = head[LENGTH_NBYTES : LENGTH_NBYTES + 1] == b"{"
    return begins and length <= min(MAX_HEADER_NBYTES, nbytes - LENGTH_NBYTES)


def _library() -> Any:
    try:
        import safetensors
    except ImportError as exc:
        raise ConfigurationError(
            ".safetensors files need safetensors: pip install 'holdfast[safetensors]'"
        ) from exc
    return safetensors
