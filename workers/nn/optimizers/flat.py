"""What all optimizers do with a piece of the flat buffers, around the arithmetic that makes each one.

In Keras 3's order: the gradient is unscaled, accumulated and clipped, weights decay, `advance` does the
optimizer's own arithmetic, the moving average follows, the constraint is applied.

Every element of the new buffers is written once, with its final value, and an old one is not read after its
new one was written: the new buffers may be the old ones, and work that is done twice by two processes shows
nothing in between. What lies in between is in workspaces that every call uses again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np

from workers.nn.lookup import check, is_count, serialize, snake_case
from workers.nn.numerics import Array, aligned_empty, quiet
from workers.nn.optimizers import schedules
from workers.nn.optimizers.schedules import LearningRateSchedule
from workers.nn.variables import Variable
from workers.updates import keep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

    from workers.engine import Flat

LearningRate: TypeAlias = float | LearningRateSchedule | Callable[[], float] | Mapping[str, Any]
"""A number, a schedule (or what it was serialized as), or a function without arguments."""


class Common(TypedDict, total=False):
    """Settings of every optimizer.

    weight_decay: weights first lose this share of themselves, times the learning rate.
    clipnorm, global_clipnorm, clipvalue: at most one; the largest norm of the gradient of each variable,
        or of all together, or the largest element.
    use_ema, ema_momentum, ema_overwrite_frequency: keep a moving average of the weights, and make it the
        weights every so many updates.
    loss_scale_factor: gradients are of a loss that was multiplied by it.
    gradient_accumulation_steps: update once in so many steps, with the mean of their gradients.
    name: by default that of the class.
    """

    weight_decay: float | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    name: str | None


@dataclass(frozen=True, slots=True)
class Slot:
    """A state array beside the parameters: its name, Keras's name for it, and what it begins with.

    In flat buffers it begins with zeros: the first update takes `initial` for what it finds.
    """

    name: str
    keras_name: str
    initial: float = 0.0


@dataclass(frozen=True, slots=True)
class Rule:
    """What depends on the variable that an element belongs to."""

    trainable: bool = True
    assigned: bool = False
    """The gradient is the new value."""
    decays: bool = True
    multiplier: float = 1.0
    """Of the learning rate."""
    group: int = 0
    """Which sum of squares its gradient counts in."""
    constraint: Callable[[Array], Array] | None = None
    shape: tuple[int, ...] = (-1,)
    """What a constraint sees a piece as."""


DEFAULT = Rule()


class FlatOptimizer:
    """An optimizer over pieces of flat buffers. A subclass gives `groups` and `advance`."""

    needs_whole_variables = False
    """Whether `advance` looks at all of a variable at once."""

    def __init__(
        self,
        learning_rate: LearningRate,
        *,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
    ) -> None:
        who = type(self).__name__
        clips = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
        given = {key: value for key, value in clips.items() if value is not None}
        check(len(given) <= 1, f"{who}: only one of {' and '.join(given)} can be set")
        for key, value in given.items():
            check(value > 0, f"{who}: {key} must be positive, not {value!r}")
        check(
            weight_decay is None or weight_decay >= 0,
            f"{who}: weight_decay must be a number from 0 up, not {weight_decay!r}",
        )
        check(0 <= ema_momentum <= 1, f"{who}: ema_momentum must be from 0 to 1, not {ema_momentum!r}")
        check(
            ema_overwrite_frequency is None or is_count(ema_overwrite_frequency),
            f"{who}: ema_overwrite_frequency must be a positive integer, not {ema_overwrite_frequency!r}",
        )
        check(
            loss_scale_factor is None or loss_scale_factor > 0,
            f"{who}: loss_scale_factor must be positive, not {loss_scale_factor!r}",
        )
        steps = gradient_accumulation_steps
        check(
            steps is None or (is_count(steps) and steps >= 2),
            f"{who}: gradient_accumulation_steps must be an integer from 2 up, not {steps!r}",
        )
        self._rate = self._read_rate(learning_rate)
        self.weight_decay = weight_decay
        self.clipnorm = clipnorm
        self.clipvalue = clipvalue
        self.global_clipnorm = global_clipnorm
        self.use_ema = bool(use_ema)
        self.ema_momentum = float(ema_momentum)
        self.ema_overwrite_frequency = ema_overwrite_frequency
        self.loss_scale_factor = loss_scale_factor
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.name = name or snake_case(who)
        self.common: tuple[Slot, ...] = (Slot("ema", "average"),) if use_ema else ()
        if steps is not None:
            self.common += (Slot("gradient_accumulator", "gradient_accumulator"),)
        self._arrays: dict[str, Array] = {}

    # -- what a subclass gives ----------------------------------------------------------------------------

    @property
    def groups(self) -> tuple[tuple[Slot, ...], ...]:
        """The slots of the optimizer itself, in the order in which Keras stores them.

        All of the first group, variable by variable, come before those of the second.
        """
        return ()

    def advance(
        self,
        t: int,
        rate: float,
        params: Flat,
        slots: Sequence[Flat],
        grad: Flat,
        new_params: Flat,
        new_slots: Sequence[Flat],
        scratch: Flat,
    ) -> None:
        """Write the weights and slots after update number `t`, counted from 1, with learning rate `rate`.

        What the module says of new and old buffers holds; `grad` is not written.
        """
        raise NotImplementedError

    @property
    def keeps_zeros(self) -> bool:
        """Whether a weight of zero stays zero, with its slots, where the gradient is zero."""
        return all(slot.initial == 0 for group in self.groups for slot in group)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        rate = self._rate
        learning_rate: Any
        if isinstance(rate, Variable):
            learning_rate = float(rate.array)
        elif isinstance(rate, LearningRateSchedule):
            learning_rate = schedules.serialize(rate)
        else:
            learning_rate = serialize(rate) if hasattr(rate, "__name__") else type(rate).__name__
        return {
            "name": self.name,
            "learning_rate": learning_rate,
            "weight_decay": self.weight_decay,
            "clipnorm": self.clipnorm,
            "global_clipnorm": self.global_clipnorm,
            "clipvalue": self.clipvalue,
            "use_ema": self.use_ema,
            "ema_momentum": self.ema_momentum,
            "ema_overwrite_frequency": self.ema_overwrite_frequency,
            "loss_scale_factor": self.loss_scale_factor,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
        }

    # -- workers.engine.Optimizer -------------------------------------------------------------------------

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state arrays kept beside the parameters: the common ones, then those of `groups`."""
        return tuple(slot.name for group in (self.common, *self.groups) for slot in group)

    @property
    def whole(self) -> tuple[tuple[int, int], ...]:
        """No range of the buffers has to stay in one piece."""
        return ()

    @property
    def measures(self) -> bool:
        """Whether the norm of the gradient has to be known."""
        return self.clipnorm is not None or self.global_clipnorm is not None

    def measure(self, step: int, start: int, slots: Sequence[Flat], grad: Flat) -> NDArray[np.float64]:
        """The sum of squares of a piece of the gradient, as an array of one."""
        self._check_needs_no_layout()
        return np.array([self.squares(step, slots, grad)])

    def update(
        self,
        step: int,
        start: int,
        params: Flat,
        slots: Sequence[Flat],
        grad: Flat,
        new_params: Flat,
        new_slots: Sequence[Flat],
        scratch: Flat,
        sums: NDArray[np.float64] | None = None,
        knobs: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the state after step `step` (counted from 0) into `new_params` and `new_slots`."""
        self._check_needs_no_layout()
        self.update_piece(
            DEFAULT, step, params, slots, grad, new_params, new_slots, scratch, sums=sums, knobs=knobs
        )

    # -- a piece to which one rule applies ----------------------------------------------------------------

    def squares(self, step: int, slots: Sequence[Flat], grad: Flat) -> float:
        """The sum of squares of the gradient that the update of this step clips; 0 if it only accumulates."""
        if not self._applies(step):
            return 0.0
        with quiet():
            return self.sum_of_squares(self._gradient(slots, grad))

    def update_piece(
        self,
        rule: Rule,
        step: int,
        params: Flat,
        slots: Sequence[Flat],
        grad: Flat,
        new_params: Flat,
        new_slots: Sequence[Flat],
        scratch: Flat,
        *,
        sums: NDArray[np.float64] | None = None,
        knobs: Mapping[str, Any] | None = None,
    ) -> None:
        """`update`, for trainable elements that `rule` says the rest of."""
        t, own = self.iteration(step) + 1, len(self.common)
        final = rule.constraint is None and not self._overwrites(t)
        weights = new_params if final else self.workspace("weights", len(params))
        with quiet():
            if self._applies(step):
                rate = self.rate(step, knobs) * rule.multiplier
                gradient = self._clipped(self._gradient(slots, grad), rule, sums)
                decayed = self._decayed(rate, rule, params)
                self.advance(t, rate, decayed, slots[own:], gradient, weights, new_slots[own:], scratch)
                if self.gradient_accumulation_steps:
                    new_slots[own - 1][...] = 0
            else:
                np.add(slots[own - 1], self._unscaled(grad), out=new_slots[own - 1])
                keep((params, *slots[own:]), (weights, *new_slots[own:]))
            self.finish(rule, t, weights, slots, new_params, new_slots, scratch)

    def finish(
        self,
        rule: Rule,
        t: int,
        weights: Flat,
        slots: Sequence[Flat],
        new_params: Flat,
        new_slots: Sequence[Flat],
        scratch: Flat,
    ) -> None:
        """What follows when update number `t` has made these weights: their average, and their constraint."""
        if self.use_ema:
            self._follow(t, weights, slots[0], new_slots[0], scratch)
        if self._overwrites(t):
            weights = new_slots[0]
        if rule.constraint is not None:
            weights = np.asarray(rule.constraint(weights.reshape(rule.shape))).reshape(-1)
        if weights is not new_params:
            np.copyto(new_params, weights)

    def iteration(self, step: int) -> int:
        """The number of updates before step `step`."""
        return step // (self.gradient_accumulation_steps or 1)

    def rate(self, step: int, knobs: Mapping[str, Any] | None = None) -> float:
        """The learning rate of step `step`; that of `knobs` goes before the optimizer's own."""
        if knobs is not None and "learning_rate" in knobs:
            return float(knobs["learning_rate"])
        if isinstance(self._rate, Variable):
            return float(self._rate.array)
        return float(self._rate(step) if isinstance(self._rate, LearningRateSchedule) else self._rate())

    def workspace(self, name: str, length: int, dtype: DTypeLike = np.float32) -> Array:
        """Memory of that name for the length of a call."""
        found = self._arrays.get(name)
        if found is None or len(found) < length:
            found = self._arrays[name] = aligned_empty((length,), np.dtype(dtype))
        return found[:length]

    def sum_of_squares(self, piece: Flat) -> float:
        """In double precision: squares do not overflow, and the sum depends on the piece's length alone."""
        wide = self.workspace("squares", len(piece), np.float64)
        np.multiply(piece, piece, out=wide, dtype=np.float64)
        return float(np.add.reduce(wide))

    # -- parts --------------------------------------------------------------------------------------------

    def _read_rate(self, given: object) -> Variable | LearningRateSchedule | Callable[[], float]:
        if isinstance(given, Mapping):
            given = schedules.deserialize(given)
        if callable(given):
            return given
        check(
            isinstance(given, int | float) and not isinstance(given, bool) and given >= 0,
            f"{type(self).__name__}: learning_rate must be a number from 0 up, not {given!r}; or a schedule, "
            "or a function without arguments",
        )
        return Variable(given, dtype=np.float64, trainable=False, name="learning_rate")  # type: ignore[arg-type]

    def _check_needs_no_layout(self) -> None:
        check(
            self.clipnorm is None and self.keeps_zeros and not self.needs_whole_variables,
            f"{type(self).__name__} with these settings has to know where variables lie: give the engine "
            "nn.optimizers.for_model(optimizer, layout)",
        )

    def _applies(self, step: int) -> bool:
        """Whether step `step` updates the weights."""
        return self._every(self.gradient_accumulation_steps or 1, step + 1)

    @staticmethod
    def _every(period: int | None, count: int) -> bool:
        return period is not None and count % period == 0

    def _overwrites(self, t: int) -> bool:
        """Whether the average becomes the weights after update number `t`."""
        return self.use_ema and self._every(self.ema_overwrite_frequency, t)

    def _unscaled(self, grad: Flat) -> Flat:
        if self.loss_scale_factor is None:
            return grad
        return np.divide(grad, self.loss_scale_factor, out=self.workspace("gradient", len(grad)))

    def _gradient(self, slots: Sequence[Flat], grad: Flat) -> Flat:
        """The mean over the steps that were accumulated."""
        gradient = self._unscaled(grad)
        if not self.gradient_accumulation_steps:
            return gradient
        out = self.workspace("gradient", len(grad))
        np.add(gradient, slots[len(self.common) - 1], out=out)
        return np.divide(out, self.gradient_accumulation_steps, out=out)

    def _clipped(self, gradient: Flat, rule: Rule, sums: NDArray[np.float64] | None) -> Flat:
        out = self.workspace("gradient", len(gradient))
        if self.clipvalue is not None:
            return np.clip(gradient, -self.clipvalue, self.clipvalue, out=out)
        limit = self.clipnorm if self.clipnorm is not None else self.global_clipnorm
        if limit is None:
            return gradient
        assert sums is not None, "clipping by norm needs what `measure` gives, summed up"
        norm = math.sqrt(sums[rule.group])
        if norm <= limit:
            return gradient
        lost = self.global_clipnorm is not None and not math.isfinite(norm)
        return np.multiply(gradient, math.nan if lost else limit / norm, out=out)

    def _decayed(self, rate: float, rule: Rule, params: Flat) -> Flat:
        if not self.weight_decay or not rule.decays:
            return params
        out = self.workspace("decayed", len(params))
        np.multiply(params, self.weight_decay, out=out)
        np.multiply(out, rate, out=out)
        return np.subtract(params, out, out=out)

    def _follow(self, t: int, weights: Flat, average: Flat, new_average: Flat, scratch: Flat) -> None:
        """Move the average towards the weights; before the second update it is the weights."""
        if t == 1:
            np.copyto(new_average, weights)
            return
        share = self.workspace("share", len(weights))
        np.multiply(average, self.ema_momentum, out=scratch)
        np.multiply(weights, 1 - self.ema_momentum, out=share)
        np.add(scratch, share, out=new_average)
