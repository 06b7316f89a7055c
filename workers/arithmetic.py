"""The arithmetic that every worker computes with: one BLAS thread, denormals flushed to zero."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threadpoolctl import ThreadpoolController

_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")

_FLUSH = {
    "x86_64": (7, 0x8040),  # MXCSR, the 8th word of glibc's fenv_t: flush-to-zero, denormals-are-zero
    "aarch64": (0, 1 << 24),  # FPCR, the 1st word: FZ
}


def single_threaded_environment() -> dict[str, str]:
    """Variables that must be set before NumPy is imported: one BLAS thread per worker."""
    return dict.fromkeys(_THREAD_VARIABLES, "1")


def settle_arithmetic() -> None:
    """Make this thread compute as all workers do. Call once, in the thread that computes.

    Denormals: the moments of a unit that no longer learns decay into them and stay there, and every
    operation on one costs a hundred times the usual (an Adam step of half dead units took 3.6 ms instead of
    1.0). TensorFlow flushes them too. Which mode was reached is part of the numeric fingerprint.
    """
    from threadpoolctl import threadpool_limits

    os.environ.update(single_threaded_environment())
    threadpool_limits(1)
    for dtype in (np.float32, np.float64):
        np.finfo(dtype)  # looked up now and kept: later it would warn that denormals are zero
    with suppress(OSError, AttributeError):
        _flush_denormals()


@contextmanager
def as_workers_compute() -> Iterator[None]:
    """While it lasts, this thread computes as workers do, so that it gets the same bits."""
    before = None
    with _pools().limit(limits=1):
        with suppress(OSError, AttributeError):
            before = _flush_denormals()
        try:
            yield
        finally:
            if before is not None:
                _libm().fesetenv(before)


@cache
def _pools() -> ThreadpoolController:
    """The thread pools of this process; to look for them takes half a millisecond."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@cache
def _libm() -> ctypes.CDLL:
    return ctypes.CDLL("libm.so.6")


def _flush_denormals() -> ctypes.Array[ctypes.c_uint32] | None:
    """Set the processor's control register through the C library; returns the environment that it had.

    Elsewhere than on glibc nothing happens.
    """
    if sys.platform != "linux" or platform.machine() not in _FLUSH:
        return None
    word, bits = _FLUSH[platform.machine()]
    libm = _libm()
    before, environment = (ctypes.c_uint32 * 16)(), (ctypes.c_uint32 * 16)()
    if libm.fegetenv(before) or libm.fegetenv(environment):
        return None
    environment[word] |= bits
    libm.fesetenv(environment)
    return before


def denormals_are_kept() -> bool:
    """Whether a product below the smallest normal number is not flushed to zero."""
    small = np.full(1, 1e-38, np.float32)
    return bool((small * np.float32(0.1))[0] > 0)
