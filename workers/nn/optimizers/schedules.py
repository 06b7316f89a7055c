"""Learning rates as functions of the step. Source: Keras 3 `keras.optimizers.schedules`."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from workers.nn import lookup
from workers.nn.lookup import check

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class LearningRateSchedule:
    """Base: `schedule(step)` gives the learning rate of a step counted from 0, and of nothing else."""

    def __call__(self, step: Any) -> Any:
        """The learning rate of this step."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values, such that `cls(**config)` makes an equal schedule."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LearningRateSchedule:
        """A new schedule of these settings."""
        return cls(**config)


class ExponentialDecay(LearningRateSchedule):
    """initial * rate ** (step / decay_steps); by whole numbers of `decay_steps` with `staircase`."""

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        decay_rate: float,
        staircase: bool = False,
        name: str = "ExponentialDecay",
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = _positive(decay_steps, f"{type(self).__name__}: decay_steps")
        self.decay_rate = decay_rate
        self.staircase = staircase
        self.name = name

    def __call__(self, step: Any) -> float:
        """The learning rate of this step."""
        return float(self.initial_learning_rate * self.decay_rate ** self._periods(step))

    def _periods(self, step: Any) -> float:
        periods = float(step) / self.decay_steps
        return math.floor(periods) if self.staircase else periods


class InverseTimeDecay(ExponentialDecay):
    """initial / (1 + rate * step / decay_steps); by whole numbers of `decay_steps` with `staircase`."""

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        decay_rate: float,
        staircase: bool = False,
        name: str = "InverseTimeDecay",
    ) -> None:
        super().__init__(initial_learning_rate, decay_steps, decay_rate, staircase, name)

    def __call__(self, step: Any) -> float:
        """The learning rate of this step."""
        return self.initial_learning_rate / (1 + self.decay_rate * self._periods(step))


class PolynomialDecay(LearningRateSchedule):
    """From one rate to another along (1 - step / decay_steps) ** power, and then the other for good.

    With `cycle`, `decay_steps` is the next multiple of it instead.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
        name: str = "PolynomialDecay",
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = _positive(decay_steps, "PolynomialDecay: decay_steps")
        self.end_learning_rate = end_learning_rate
        self.power = power
        self.cycle = cycle
        self.name = name

    def __call__(self, step: Any) -> float:
        """The learning rate of this step."""
        step, steps = float(step), float(self.decay_steps)
        if self.cycle:
            steps *= max(1, math.ceil(step / steps))
        share = (1 - min(step, steps) / steps) ** self.power
        return float((self.initial_learning_rate - self.end_learning_rate) * share + self.end_learning_rate)


class PiecewiseConstantDecay(LearningRateSchedule):
    """values[i] up to and with step boundaries[i], and behind the last boundary the last value."""

    def __init__(
        self, boundaries: Sequence[float], values: Sequence[float], name: str = "PiecewiseConstant"
    ) -> None:
        check(
            len(values) == len(boundaries) + 1,
            f"PiecewiseConstantDecay: {len(boundaries)} boundaries need one value more, not {len(values)}",
        )
        check(
            all(low < high for low, high in pairwise(boundaries)),
            f"PiecewiseConstantDecay: boundaries must ascend, and {list(boundaries)} do not",
        )
        self.boundaries = list(boundaries)
        self.values = list(values)
        self.name = name

    def __call__(self, step: Any) -> float:
        """The learning rate of this step."""
        return float(self.values[sum(float(step) > boundary for boundary in self.boundaries)])


class CosineDecay(LearningRateSchedule):
    """Half a cosine down to `alpha` times the rate (Loshchilov and Hutter, ICLR 2017).

    With `warmup_target`, it first rises to that in `warmup_steps` (Goyal et al., 2017), and then decays.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        alpha: float = 0.0,
        name: str = "CosineDecay",
        warmup_target: float | None = None,
        warmup_steps: float = 0,
    ) -> None:
        check(warmup_steps >= 0, f"CosineDecay: warmup_steps must be from 0 up, not {warmup_steps}")
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = _positive(decay_steps, "CosineDecay: decay_steps")
        self.alpha = alpha
        self.name = name
        self.warmup_target = warmup_target
        self.warmup_steps = warmup_steps

    def __call__(self, step: Any) -> float:
        """The learning rate of this step."""
        done, initial, target = float(step), self.initial_learning_rate, self.warmup_target
        if target is None:
            target = initial
        elif done < self.warmup_steps:
            return initial + (target - initial) * done / self.warmup_steps
        else:
            done -= self.warmup_steps
        return target * _cosine(min(done / self.decay_steps, 1.0), self.alpha)


class CosineDecayRestarts(LearningRateSchedule):
    """Half a cosine again and again: each `t_mul` times as long, from `m_mul` times the rate.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        first_decay_steps: float,
        t_mul: float = 2.0,
        m_mul: float = 1.0,
        alpha: float = 0.0,
        name: str = "SGDRDecay",
    ) -> None:
        check(t_mul >= 1, f"CosineDecayRestarts: t_mul must be from 1 up, not {t_mul}")
        self.initial_learning_rate = initial_learning_rate
        self.first_decay_steps = _positive(first_decay_steps, "CosineDecayRestarts: first_decay_steps")
        self.t_mul = t_mul
        self.m_mul = m_mul
        self.alpha = alpha
        self.name = name

    def __call__(self, step: Any) -> float:
        """The learning rate of this step."""
        done, ratio = float(step) / self.first_decay_steps, self.t_mul  # in units of the first period
        if ratio == 1:
            restarts = math.floor(done)
            share = done - restarts
        else:
            restarts = math.floor(math.log1p(done * (ratio - 1)) / math.log(ratio))
            share = (done - (1 - ratio**restarts) / (1 - ratio)) / ratio**restarts
        return self.initial_learning_rate * _cosine(share, self.alpha, self.m_mul**restarts)


def _cosine(share: float, alpha: float, height: float = 1.0) -> float:
    return (1 - alpha) * 0.5 * height * (1 + math.cos(math.pi * share)) + alpha


def _positive(value: float, what: str) -> float:
    check(value > 0, f"{what} must be positive, not {value}")
    return value


KNOWN: dict[str, type[LearningRateSchedule]] = {
    cls.__name__: cls
    for cls in (
        ExponentialDecay,
        InverseTimeDecay,
        PolynomialDecay,
        PiecewiseConstantDecay,
        CosineDecay,
        CosineDecayRestarts,
    )
}


def serialize(learning_rate_schedule: LearningRateSchedule) -> dict[str, Any]:
    """The schedule as JSON values."""
    return dict(lookup.serialize(learning_rate_schedule))


def deserialize(config: Any) -> Callable[..., Any]:
    """The schedule that `serialize` wrote, or the function."""
    found: Callable[..., Any] = lookup.get(
        "learning rate schedule", config, LearningRateSchedule, KNOWN, lambda function: function
    )
    return found
