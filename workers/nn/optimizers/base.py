"""Optimizers as users know them from Keras: over variables, step by step, with a state of their own."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.awaited import Awaited
from workers.nn.lookup import check
from workers.nn.optimizers.flat import DEFAULT, FlatOptimizer, Rule
from workers.nn.optimizers.schedules import LearningRateSchedule
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from workers.engine import Flat
    from workers.nn.numerics import Array
    from workers.nn.optimizers.flat import LearningRate, Slot


class Optimizer(Awaited, FlatOptimizer):
    """Base of the optimizers. Source: Keras 3 `keras.optimizers` (names, defaults, order of operations).

    Training of a model goes by `update` on flat buffers, and leaves the state here alone. By hand it goes
    `optimizer.apply(gradients, variables)`.
    """

    _excluded: frozenset[int] = frozenset()
    _excluded_names: re.Pattern[str] | None = None
    built = False

    def __init__(self, learning_rate: LearningRate, **settings: Any) -> None:
        super().__init__(learning_rate, **settings)
        self._iteration = Variable(np.int64(0), trainable=False, name="iteration")
        self._targets: list[Variable] = []
        self._places: dict[int, int] = {}
        self.slot_variables: dict[str, list[Variable]] = {}
        """The state once it is built: for each slot a variable for each variable that is trained."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Optimizer:
        """A new optimizer of these settings."""
        return cls(**config)

    # -- settings -----------------------------------------------------------------------------------------

    @property
    def learning_rate(self) -> Any:
        """A variable that holds it; of a schedule or function, its value for the next step."""
        return self._rate if isinstance(self._rate, Variable) else self.rate(self.steps)

    @learning_rate.setter
    def learning_rate(self, learning_rate: LearningRate) -> None:
        given = self._read_rate(learning_rate)
        if isinstance(given, Variable):
            check(
                not isinstance(self._rate, LearningRateSchedule),
                f"{type(self).__name__}: the learning rate follows a schedule, and cannot be set to a number",
            )
            if isinstance(self._rate, Variable):
                self._rate.assign(given.array)
                return
        self._rate = given

    @property
    def iterations(self) -> Variable:
        """How often the weights were updated."""
        if self.gradient_accumulation_steps is None:
            return self._iteration
        return Variable(np.int64(self.iteration(self.steps)), trainable=False, name="iterations")

    @property
    def steps(self) -> int:
        """How many batches' gradients were applied; `iterations` counts updates, which may take several."""
        return int(self._iteration.array)

    @steps.setter
    def steps(self, count: int) -> None:
        self._iteration.assign(np.int64(count))

    def exclude_from_weight_decay(
        self, var_list: Iterable[Variable] | None = None, var_names: Iterable[str] | None = None
    ) -> None:
        """In place. Let these variables, and those whose names hold one of these patterns, not decay.

        Raises ConfigurationError once the optimizer is built.
        """
        check(not self.built, "exclude_from_weight_decay: call it before the optimizer is built")
        self._excluded = frozenset(id(variable) for variable in var_list or ())
        patterns = [*(var_names or ())]
        self._excluded_names = re.compile("|".join(patterns)) if patterns else None

    def decays(self, name: str, variable: Variable | None = None) -> bool:
        """Whether weight decay is for the variable of that name."""
        named = self._excluded_names is not None and self._excluded_names.search(name) is not None
        return not named and id(variable) not in self._excluded

    def scale_loss(self, loss: Any) -> Any:
        """The loss whose gradients are to be applied."""
        return loss if self.loss_scale_factor is None else loss * self.loss_scale_factor

    # -- by hand ------------------------------------------------------------------------------------------

    def build(self, variables: Sequence[Variable]) -> None:
        """In place. Make the state for these variables, once."""
        if self.built:
            return
        for variable in variables:
            check(variable.dtype == "float32", f"variable {variable.path} is {variable.dtype}: use float32")
        self._targets = list(variables)
        self._places = {id(variable): i for i, variable in enumerate(self._targets)}
        self.slot_variables = {
            slot.name: [self._slot_variable(slot, variable) for variable in self._targets]
            for group in (self.common, *self.groups)
            for slot in group
        }
        self.built = True
        self.tell_more()

    @property
    def targets(self) -> list[Variable]:
        """The variables that it was built for, in the order of each slot's."""
        return list(self._targets)

    @property
    def variables(self) -> list[Variable]:
        """The state, in the order in which Keras stores it.

        First the iteration and, unless it follows a schedule, the learning rate; then the slots.
        """
        found = [self._iteration]
        if isinstance(self._rate, Variable):
            found.append(self._rate)
        if self.built:
            for group in (*((slot,) for slot in self.common), *self.groups):
                for place in range(len(self._targets)):
                    found += [self.slot_variables[slot.name][place] for slot in group]
        return found

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Variable]]) -> Variable:
        """In place. Apply pairs of a gradient and its variable; gives the iteration."""
        pairs = [*grads_and_vars]
        self.apply([grad for grad, _ in pairs], [variable for _, variable in pairs])
        return self._iteration

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Variable] | None = None) -> None:
        """In place. Update the variables by their gradients: of those it was built for, or is by this.

        A gradient that is None leaves its variable. Raises ConfigurationError if all are, for an unknown
        variable, and for a gradient of another shape.
        """
        if not grads:
            return
        variables = self._targets if trainable_variables is None else list(trainable_variables)
        self.build(variables)
        check(len(grads) == len(variables), f"apply: {len(grads)} gradients for {len(variables)} variables")
        pairs = [(v, _gradient(v, g)) for g, v in zip(grads, variables, strict=True) if g is not None]
        check(bool(pairs), "apply: no variable has a gradient")
        missing = [variable for g, variable in zip(grads, variables, strict=True) if g is None]
        if missing:
            paths = ", ".join(variable.path for variable in missing)
            warnings.warn(f"no gradients for {paths}", stacklevel=2)
        step = self.steps
        sums = self._sums(step, pairs) if self.measures else None
        for variable, grad in pairs:
            self._apply_one(step, variable, grad, sums)
        for variable in missing:
            self._apply_one(step, variable, None, None)
        self.steps = step + 1

    def averages(self, variables: Iterable[Variable]) -> list[Array]:
        """The moving averages of these variables; ConfigurationError if there are none."""
        check(self.use_ema and self.built, f"{self.name} has no moving averages: train with use_ema=True")
        return [self.slot_variables["ema"][self._place(variable)].array for variable in variables]

    def finalize_variable_values(self, var_list: Iterable[Variable]) -> None:
        """In place. Make the moving averages the values of the variables, if there are averages."""
        if self.use_ema:
            variables = [*var_list]
            for variable, average in zip(variables, self.averages(variables), strict=True):
                variable.assign(average)

    # -- parts --------------------------------------------------------------------------------------------

    def _slot_variable(self, slot: Slot, target: Variable) -> Variable:
        values = np.full(target.spec.dims, slot.initial, np.float32)
        made = Variable(values, trainable=False, name=f"{target.path.replace('/', '_')}_{slot.keras_name}")
        made.path = f"{self.name}/{made.name}"
        return made

    def _place(self, variable: Variable) -> int:
        place = self._places.get(id(variable))
        if place is None:
            raise ConfigurationError(
                f"variable {variable.path!r} is not one that the optimizer was built for: make another"
            )
        return place

    def _state(self, place: int) -> list[Flat]:
        return [self.slot_variables[name][place].array.reshape(-1) for name in self.slots]

    def _group(self, place: int) -> int:
        return place if self.clipnorm is not None else 0

    def _sums(self, step: int, pairs: Sequence[tuple[Variable, Flat]]) -> NDArray[np.float64]:
        sums = np.zeros(len(self._targets))
        for variable, grad in pairs:
            place = self._place(variable)
            sums[self._group(place)] += self.squares(step, self._state(place), grad)
        return sums

    def _apply_one(
        self, step: int, variable: Variable, grad: Flat | None, sums: NDArray[np.float64] | None
    ) -> None:
        place = self._place(variable)
        state, old = self._state(place), variable.array.reshape(-1)
        new, scratch = np.empty_like(old), np.empty_like(old)
        if grad is None:
            self.finish(DEFAULT, self.iteration(step) + 1, old, state, new, state, scratch)
        else:
            rule = rule_of(self, variable, self._group(place))
            self.update_piece(rule, step, old, state, grad, new, state, scratch, sums=sums)
        variable.assign(new.reshape(variable.spec.dims))


def rule_of(optimizer: Optimizer, variable: Variable, group: int) -> Rule:
    """What is peculiar to the elements of this variable, whose gradients count in sum number `group`."""
    return Rule(
        decays=optimizer.decays(variable.name, variable),
        multiplier=float(variable.learning_rate_multiplier),
        group=group,
        constraint=variable.constraint,
        shape=(-1,) if variable.constraint is None else variable.spec.dims,
    )


def _gradient(variable: Variable, grad: Any) -> Flat:
    array = np.asarray(grad, np.float32)
    check(
        array.shape == variable.spec.dims,
        f"variable {variable.path!r} has shape {variable.spec.dims}, and its gradient {array.shape}",
    )
    return np.ascontiguousarray(array).reshape(-1)
