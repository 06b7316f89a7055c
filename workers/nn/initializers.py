"""Initial values of variables, drawn from a given generator.

Source: Keras 3 `keras.initializers` (names, defaults, bounds); the draws themselves are NumPy's. One that was
given a seed draws from that instead, and so gives the same values in every run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigurationError
from workers.nn.lookup import check
from workers.nn.lookup import get as _get
from workers.nn.random import next_streams
from workers.rng import Purpose, Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Values = NDArray[np.float32]
Shape = tuple[int, ...]

_TRUNCATED_STDDEV = 0.87962566103423978
"""Standard deviation of a unit normal distribution cut off at two."""


class Initializer:
    """Base: `initializer(shape, rng)` gives float32 values of that shape."""

    def __call__(self, shape: Shape, rng: np.random.Generator | None = None) -> Values:
        """Draw the values; from the process's own generator where none is given."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return dict(vars(self))


class Zeros(Initializer):
    """All zeros."""

    def __call__(self, shape: Shape, rng: np.random.Generator | None = None) -> Values:
        """Zeros; nothing is drawn."""
        return np.zeros(shape, np.float32)


class Ones(Initializer):
    """All ones."""

    def __call__(self, shape: Shape, rng: np.random.Generator | None = None) -> Values:
        """Ones; nothing is drawn."""
        return np.ones(shape, np.float32)


class Constant(Initializer):
    """The same value everywhere."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = float(value)

    def __call__(self, shape: Shape, rng: np.random.Generator | None = None) -> Values:
        """The value; nothing is drawn."""
        return np.full(shape, self.value, np.float32)


class Identity(Initializer):
    """`gain` on the diagonal of a matrix, and zeros beside it."""

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = float(gain)

    def __call__(self, shape: Shape, rng: np.random.Generator | None = None) -> Values:
        """The matrix; ConfigurationError for another number of axes."""
        if len(shape) != 2:
            raise ConfigurationError(f"Identity: it is for matrices, not for shape {tuple(shape)}")
        return np.eye(*shape, dtype=np.float32) * np.float32(self.gain)


class RandomInitializer(Initializer):
    """Base of those that draw. A subclass gives `draw`."""

    def __init__(self, seed: int | None = None) -> None:
        check(
            seed is None or (isinstance(seed, int) and seed >= 0),
            f"{type(self).__name__}: seed must be an integer from 0 up, not {seed!r}",
        )
        self.seed = seed

    def __call__(self, shape: Shape, rng: np.random.Generator | None = None) -> Values:
        """Draw the values."""
        if self.seed is not None:
            rng = Streams(self.seed, purpose=Purpose.INIT).generator()
        return self.draw(tuple(shape), rng or next_streams(Purpose.INIT).generator()).astype(np.float32)

    def draw(self, shape: Shape, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the values, in double precision."""
        raise NotImplementedError


class RandomUniform(RandomInitializer):
    """Uniform between two bounds."""

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        check(minval <= maxval, f"RandomUniform: minval {minval} is above maxval {maxval}")
        self.minval = float(minval)
        self.maxval = float(maxval)

    def draw(self, shape: Shape, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the values."""
        return rng.uniform(self.minval, self.maxval, shape)


class RandomNormal(RandomInitializer):
    """Normal."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        check(stddev >= 0, f"{type(self).__name__}: stddev must be from 0 up, not {stddev}")
        self.mean = float(mean)
        self.stddev = float(stddev)

    def draw(self, shape: Shape, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the values."""
        return rng.normal(self.mean, self.stddev, shape)


class TruncatedNormal(RandomNormal):
    """Normal, with what lies more than two standard deviations off drawn again."""

    def draw(self, shape: Shape, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the values."""
        draws = np.asarray(rng.standard_normal(shape))
        while (outside := np.abs(draws) > 2).any():
            draws[outside] = rng.standard_normal(int(outside.sum()))
        return self.mean + self.stddev * draws


class VarianceScaling(RandomInitializer):
    """Values whose variance is `scale` / fan, by fan in, fan out or their mean.

    The fans of a kernel are its last two dimensions, times the receptive field for a convolution; or they are
    the products of the dimensions in `input_axes` and `output_axes`.
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: int | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(seed)
        who, modes = type(self).__name__, ("fan_in", "fan_out", "fan_avg")
        distributions = ("truncated_normal", "untruncated_normal", "uniform")
        distribution = "truncated_normal" if distribution == "normal" else distribution
        check(scale > 0, f"{who}: scale must be positive, not {scale}")
        check(mode in modes, f"{who}: mode {mode!r} is not one of {', '.join(modes)}")
        check(
            distribution in distributions,
            f"{who}: distribution {distribution!r} is not one of {', '.join(distributions)}",
        )
        check(
            (input_axes is None) == (output_axes is None),
            f"{who}: give input_axes and output_axes, or neither",
        )
        self.scale = float(scale)
        self.mode = mode
        self.distribution = distribution
        self.input_axes = None if input_axes is None else list(input_axes)
        self.output_axes = None if output_axes is None else list(output_axes)

    def draw(self, shape: Shape, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the values."""
        fan_in, fan_out = self._fans(shape)
        fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        stddev = math.sqrt(self.scale / max(1.0, fans[self.mode]))
        if self.distribution == "uniform":
            limit = math.sqrt(3) * stddev
            return rng.uniform(-limit, limit, shape)
        if self.distribution == "untruncated_normal":
            return rng.normal(0.0, stddev, shape)
        return TruncatedNormal(0.0, stddev / _TRUNCATED_STDDEV).draw(shape, rng)

    def _fans(self, shape: Shape) -> tuple[int, int]:
        if self.input_axes is not None and self.output_axes is not None:
            return math.prod(shape[i] for i in self.input_axes), math.prod(shape[i] for i in self.output_axes)
        field = math.prod(shape[:-2])
        fan_out = field * shape[-1] if shape else 1
        return field * shape[-2] if len(shape) > 1 else fan_out, fan_out


class _Scaled(VarianceScaling):
    """A variance scaling with a name of its own for some scale, mode and distribution."""

    fixed: ClassVar[tuple[float, str, str]]

    def __init__(
        self,
        seed: int | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(*self.fixed, seed, input_axes, output_axes)

    def get_config(self) -> dict[str, Any]:
        """What can be set: the name says the rest."""
        return {"seed": self.seed, "input_axes": self.input_axes, "output_axes": self.output_axes}


class GlorotUniform(_Scaled):
    """Uniform within +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, AISTATS 2010)."""

    fixed = (1.0, "fan_avg", "uniform")


class GlorotNormal(_Scaled):
    """Truncated normal of variance 2 / (fan_in + fan_out) (Glorot and Bengio, AISTATS 2010)."""

    fixed = (1.0, "fan_avg", "truncated_normal")


class HeUniform(_Scaled):
    """Uniform within +-sqrt(6 / fan_in) (He et al., ICCV 2015)."""

    fixed = (2.0, "fan_in", "uniform")


class HeNormal(_Scaled):
    """Truncated normal of variance 2 / fan_in (He et al., ICCV 2015)."""

    fixed = (2.0, "fan_in", "truncated_normal")


class LecunUniform(_Scaled):
    """Uniform within +-sqrt(3 / fan_in) (LeCun et al., "Efficient BackProp", 1998)."""

    fixed = (1.0, "fan_in", "uniform")


class LecunNormal(_Scaled):
    """Truncated normal of variance 1 / fan_in (Klambauer et al., NeurIPS 2017)."""

    fixed = (1.0, "fan_in", "truncated_normal")


class Orthogonal(RandomInitializer):
    """A random orthogonal matrix, times `gain` (Saxe et al., ICLR 2014).

    All dimensions but the last are its rows. Its rows are orthonormal if they are fewer than its columns,
    else its columns are.
    """

    def __init__(self, gain: float = 1.0, seed: int | None = None) -> None:
        super().__init__(seed)
        self.gain = float(gain)

    def draw(self, shape: Shape, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the values; ConfigurationError for less than two dimensions."""
        check(len(shape) >= 2, f"Orthogonal: it is for two dimensions or more, not for shape {shape}")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)  # else some matrices would be likelier than others
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


class Given(Initializer):
    """What a function of the user's makes of the shape."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, shape: Shape, rng: np.random.Generator | None = None) -> Values:
        """The function's values; ConfigurationError if they have another shape."""
        values = np.asarray(self.function(tuple(shape), dtype="float32"), np.float32)
        check(values.shape == tuple(shape), f"an initializer gave {values.shape} for shape {tuple(shape)}")
        return values

    @property
    def written_as(self) -> Callable[..., Any]:
        """What is written in its place."""
        return self.function


_KNOWN: dict[str, type[Initializer]] = {
    "zeros": Zeros,
    "ones": Ones,
    "constant": Constant,
    "identity": Identity,
    "random_uniform": RandomUniform,
    "random_normal": RandomNormal,
    "truncated_normal": TruncatedNormal,
    "variance_scaling": VarianceScaling,
    "glorot_uniform": GlorotUniform,
    "glorot_normal": GlorotNormal,
    "he_uniform": HeUniform,
    "he_normal": HeNormal,
    "lecun_uniform": LecunUniform,
    "lecun_normal": LecunNormal,
    "orthogonal": Orthogonal,
}
_KNOWN |= {cls.__name__: cls for cls in _KNOWN.values()}
_KNOWN |= {"zero": Zeros, "one": Ones, "uniform": RandomUniform, "normal": RandomNormal}
_KNOWN |= {"IdentityInitializer": Identity, "OrthogonalInitializer": Orthogonal}


def get(identifier: object) -> Initializer:
    """The initializer of that name, config, or itself; or one of a function of shape and dtype."""
    found: Initializer = _get("initializer", identifier, Initializer, _KNOWN, Given)
    return found
