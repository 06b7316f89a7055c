"""Initial values of variables, drawn from a given generator.

Source: Keras 3 `keras.initializers` (names, defaults, bounds); the draws themselves are NumPy's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.nn.lookup import check
from workers.nn.lookup import get as _get

Values = NDArray[np.float32]
Shape = tuple[int, ...]

_TRUNCATED_STDDEV = 0.87962566103423978
"""Standard deviation of a unit normal distribution cut off at two."""


class Initializer:
    """Base: `initializer(shape, rng)` gives float32 values of that shape."""

    def __call__(self, shape: Shape, rng: np.random.Generator) -> Values:
        """Draw the values."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return dict(vars(self))


class Zeros(Initializer):
    """All zeros."""

    def __call__(self, shape: Shape, rng: np.random.Generator) -> Values:
        """Zeros; nothing is drawn."""
        return np.zeros(shape, np.float32)


class Ones(Initializer):
    """All ones."""

    def __call__(self, shape: Shape, rng: np.random.Generator) -> Values:
        """Ones; nothing is drawn."""
        return np.ones(shape, np.float32)


class Constant(Initializer):
    """The same value everywhere."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = float(value)

    def __call__(self, shape: Shape, rng: np.random.Generator) -> Values:
        """The value; nothing is drawn."""
        return np.full(shape, self.value, np.float32)


class RandomUniform(Initializer):
    """Uniform between two bounds."""

    def __init__(self, minval: float = -0.05, maxval: float = 0.05) -> None:
        check(minval <= maxval, f"RandomUniform: minval {minval} is above maxval {maxval}")
        self.minval = float(minval)
        self.maxval = float(maxval)

    def __call__(self, shape: Shape, rng: np.random.Generator) -> Values:
        """Draw the values."""
        return rng.uniform(self.minval, self.maxval, shape).astype(np.float32)


class RandomNormal(Initializer):
    """Normal."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05) -> None:
        self.mean = float(mean)
        self.stddev = float(stddev)

    def __call__(self, shape: Shape, rng: np.random.Generator) -> Values:
        """Draw the values."""
        return rng.normal(self.mean, self.stddev, shape).astype(np.float32)


class TruncatedNormal(RandomNormal):
    """Normal, with what lies more than two standard deviations off drawn again."""

    def __call__(self, shape: Shape, rng: np.random.Generator) -> Values:
        """Draw the values."""
        draws = rng.standard_normal(shape)
        while (outside := np.abs(draws) > 2).any():
            draws[outside] = rng.standard_normal(int(outside.sum()))
        return (self.mean + self.stddev * draws).astype(np.float32)


class VarianceScaling(Initializer):
    """Values whose variance is `scale` / fan, by fan in, fan out or their mean.

    The fans of a kernel are its last two dimensions, times the receptive field for a convolution.
    """

    def __init__(
        self, scale: float = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal"
    ) -> None:
        modes, distributions = ("fan_in", "fan_out", "fan_avg"), ("truncated_normal", "uniform")
        check(scale > 0, f"VarianceScaling: scale must be positive, not {scale}")
        check(mode in modes, f"VarianceScaling: mode {mode!r} is not one of {', '.join(modes)}")
        check(
            distribution in distributions,
            f"VarianceScaling: distribution {distribution!r} is not one of {', '.join(distributions)}",
        )
        self.scale = float(scale)
        self.mode = mode
        self.distribution = distribution

    def __call__(self, shape: Shape, rng: np.random.Generator) -> Values:
        """Draw the values."""
        field = math.prod(shape[:-2])
        fan_out = field * shape[-1] if shape else 1
        fan_in = field * shape[-2] if len(shape) > 1 else fan_out
        fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        variance = self.scale / max(1.0, fans[self.mode])
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            return RandomUniform(-limit, limit)(shape, rng)
        return TruncatedNormal(0.0, math.sqrt(variance) / _TRUNCATED_STDDEV)(shape, rng)


class _Scaled(VarianceScaling):
    """A variance scaling with a name of its own and nothing to set."""

    def get_config(self) -> dict[str, Any]:
        """Nothing: the name says it all."""
        return {}


class GlorotUniform(_Scaled):
    """Uniform within +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, AISTATS 2010)."""

    def __init__(self) -> None:
        super().__init__(1.0, "fan_avg", "uniform")


class GlorotNormal(_Scaled):
    """Truncated normal of variance 2 / (fan_in + fan_out) (Glorot and Bengio, AISTATS 2010)."""

    def __init__(self) -> None:
        super().__init__(1.0, "fan_avg", "truncated_normal")


class HeUniform(_Scaled):
    """Uniform within +-sqrt(6 / fan_in) (He et al., ICCV 2015)."""

    def __init__(self) -> None:
        super().__init__(2.0, "fan_in", "uniform")


class HeNormal(_Scaled):
    """Truncated normal of variance 2 / fan_in (He et al., ICCV 2015)."""

    def __init__(self) -> None:
        super().__init__(2.0, "fan_in", "truncated_normal")


_KNOWN: dict[str, type[Initializer]] = {
    "zeros": Zeros,
    "ones": Ones,
    "constant": Constant,
    "random_uniform": RandomUniform,
    "uniform": RandomUniform,
    "random_normal": RandomNormal,
    "normal": RandomNormal,
    "truncated_normal": TruncatedNormal,
    "variance_scaling": VarianceScaling,
    "glorot_uniform": GlorotUniform,
    "glorot_normal": GlorotNormal,
    "he_uniform": HeUniform,
    "he_normal": HeNormal,
}
_KNOWN |= {cls.__name__: cls for cls in _KNOWN.values()}


def get(identifier: object) -> Initializer:
    """The initializer of that name, config, or itself."""
    return _get("initializer", identifier, Initializer, _KNOWN)
