"""The error function of arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from workers.nn.numerics import Array

# erf(x) = x * P(x * x) / Q(x * x) for |x| <= 4, fitted to `math.erf` by least squares with weights that level
# the relative error out to 2.5e-8 (Lawson's iteration); beyond, erf is 1 in float32. Lowest power first.
_P = (1.12837914, 0.193544742, 0.0531016506, 0.00388331337, 0.000284562602, 1.98675325e-06)
_Q = (1.0, 0.504857117, 0.115349819, 0.0152071947, 0.00118555863, 3.74196941e-05)
_LIMIT = 4.0
_BLOCK = 8192
"""Elements that are worked on at a time, so that they stay in the cache."""

_exact = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array, out: Array) -> Array:
    """The error function of x, into `out`, which may be x: within 4e-7 in float32, else exact and slow."""
    if x.dtype != np.float32:
        out[...] = _exact(x)
        return out
    assert out.flags.c_contiguous  # or reshape would copy it
    flat, result = x.reshape(-1), out.reshape(-1)
    scratch = np.empty((3, min(_BLOCK, flat.size)), np.float32)
    for start in range(0, flat.size, _BLOCK):
        part, target = flat[start : start + _BLOCK], result[start : start + _BLOCK]
        x_N, p_N, q_N = scratch[:, : part.size]
        np.clip(part, -_LIMIT, _LIMIT, out=x_N)
        np.square(x_N, out=target)
        _polynomial(_P, target, p_N)
        _polynomial(_Q, target, q_N)
        p_N *= x_N
        np.divide(p_N, q_N, out=target)
        np.clip(target, -1, 1, out=target)
    return out


def _polynomial(coefficients: tuple[float, ...], t_N: Array, out_N: Array) -> None:
    out_N[...] = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        out_N *= t_N
        out_N += coefficient
