"""Everything about a process that can change the bits of its arithmetic."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
from blake3 import blake3

from workers.arithmetic import denormals_are_kept


def numeric_fingerprint() -> dict[str, Any]:
    """NumPy, BLAS and processor as far as they change bits, and the digest of a probe computation.

    Two processes with equal fingerprints give equal bits for equal calls.
    """
    return {
        "numpy": np.__version__,
        "machine": platform.machine(),
        "blas": _blas(),
        "denormals": denormals_are_kept(),
        "probe": _probe(),
    }


def _blas() -> list[dict[str, Any]]:
    """What NumPy multiplies with: its own library, else all that are loaded.

    Packages such as SciPy bring another one, and threadpoolctl lists them in an order that differs from one
    process to the next.
    """
    from threadpoolctl import threadpool_info

    loaded = [library for library in threadpool_info() if library.get("user_api") == "blas"]
    beside = os.path.realpath(os.path.dirname(np.__file__))  # wheels bring numpy.libs, or numpy/.dylibs
    own = [library for library in loaded if os.path.realpath(library["filepath"]).startswith(beside)]
    keys = ("internal_api", "version", "architecture", "num_threads")
    found = [{key: library.get(key) for key in keys} for library in own or loaded]
    return sorted(found, key=repr)


def _probe() -> str:
    """Digest of a product, a reduction and transcendental functions over fixed inputs."""
    generator = np.random.Generator(np.random.Philox(key=[1, 2]))
    x, y = generator.random((2, 97, 97), dtype=np.float32)
    product = x @ y
    values = (product, product.sum(axis=0), np.exp(x), np.log1p(y), np.tanh(product), np.sqrt(product))
    return blake3(b"".join(np.ascontiguousarray(v).tobytes() for v in values)).hexdigest()[:16]


def difference(expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    """The first field that differs, with both values; None if the fingerprints are equal."""
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            return f"{key} is {found.get(key)} here and {expected.get(key)} there"
    return None
