"""What all of the core's arithmetic shares."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]


def aligned_empty(shape: Shape, dtype: np.dtype[Any]) -> Array:
    """An uninitialised C-ordered array that starts at a multiple of 64 bytes.

    BLAS and SIMD kernels may add in another order where operands are aligned differently.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def quiet() -> np.errstate:
    """A context without NumPy's warnings of overflow, invalid values and division by zero.

    A run that diverges is found by its loss; the warnings would only hide that message.
    """
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")
