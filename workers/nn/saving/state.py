"""The named arrays of a model, and putting them back: all that fit, or an error and nothing is changed.

Names are paths: "dense/kernel" of a weight, "iteration", "learning_rate" and "m/dense/kernel" of the
optimizer. What a restore left out is told by its `Status`, as in TensorFlow.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError, IncompatibleCheckpoint
from storage.naming import listed
from workers.nn.lookup import check
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from workers.nn.model import Model

WEIGHTS = "variables"
OPTIMIZER = "optimizer"
"""What the names of weights and of the optimizer's variables begin with, where they stand together."""

_SHOWN = 5


def optimizer_variables(model: Model, *, build: bool = False) -> dict[str, Variable]:
    """The optimizer's variables by name: iteration, learning rate (unless it follows a schedule), slots.

    There are slots once it is built, which `build` does. Of a model that is not compiled: none.
    """
    optimizer = model.optimizer
    if optimizer is None:
        return {}
    model.named_variables()  # gives them their paths
    if build:
        optimizer.build(model.trainable_weights)
    found = {"iteration": optimizer.variables[0]}
    if isinstance(optimizer.learning_rate, Variable):
        found["learning_rate"] = optimizer.learning_rate
    for slot, variables in optimizer.slot_variables.items():
        for target, variable in zip(optimizer.targets, variables, strict=True):
            found[f"{slot}/{target.path}"] = variable
    return found


def variables(model: Model, *, include_optimizer: bool = True, build: bool = False) -> dict[str, Variable]:
    """Weights and the optimizer's variables together: "variables/dense/kernel", "optimizer/iteration"."""
    found = {f"{WEIGHTS}/{name}": variable for name, variable in model.named_variables().items()}
    if include_optimizer:
        of_optimizer = optimizer_variables(model, build=build)
        found |= {f"{OPTIMIZER}/{name}": variable for name, variable in of_optimizer.items()}
    return found


def assign(
    variables: Mapping[str, Variable],
    arrays: Mapping[str, Any],
    where: str,
    *,
    skip_mismatch: bool = False,
    read: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Status:
    """In place. Give variables the arrays of the same names, as far as there are such; see `planned`.

    `read` makes arrays of all that are needed, if they are not made one by one.
    """
    status = planned(variables, arrays, where, skip_mismatch=skip_mismatch)
    try:
        needed = [arrays[name] for name in status.restored]
        values = dict(zip(status.restored, read(needed) if read else map(np.asarray, needed), strict=True))
    except BaseException:
        status.expect_partial()  # nothing was restored: there is nothing else to tell
        raise
    for name, value in values.items():
        if is_rounded(variables[name], value):
            continue
        if isinstance(arrays[name], np.ndarray):
            variables[name].assign(value)
        else:  # it was read just now
            variables[name].adopt(value)
    return status


def is_rounded(variable: Variable, value: Any) -> bool:
    """Whether a number is what the variable holds already, but for its digits.

    Keras's files hold a learning rate as float32, and beside it in the settings as it was given.
    """
    if value.shape != () or value.dtype != np.float32:
        return False
    with np.errstate(over="ignore"):
        return bool(np.float32(variable.numpy()) == value)


def planned(
    variables: Mapping[str, Variable], arrays: Mapping[str, Any], where: str, *, skip_mismatch: bool = False
) -> Status:
    """What `assign` would do; nothing is changed, and no array is read.

    `arrays` have shape and dtype, and may be read when they are asked for. `where` names the file in
    messages. Raises IncompatibleCheckpoint where a shape or kind differs (with `skip_mismatch` such are left
    out), where no name fits, and where names fit only below another layer.
    """
    shared = [name for name in variables if name in arrays]
    bad = {name: fault for name in shared if (fault := mismatch(variables[name], arrays[name]))}
    fitting = [name for name in shared if name not in bad]
    missing = [name for name in variables if name not in arrays or name in bad]
    unused = [name for name in arrays if name not in variables or name in bad]
    _refuse_other_nesting(variables, arrays, missing, unused, where)
    if bad and not skip_mismatch:
        faults = "; ".join(f"{name} {fault}" for name, fault in [*bad.items()][:_SHOWN])
        raise IncompatibleCheckpoint(f"{where}: {len(bad)} of {len(shared)} arrays do not fit: {faults}")
    if not fitting and variables and not bad:
        raise IncompatibleCheckpoint(
            f"{where} has nothing for this model: it holds {listed(unused) or 'nothing'}, and the model has "
            f"{listed(missing)}"
        )
    return Status(where, fitting, missing, unused)


def assign_in_order(
    variables: Sequence[Variable], arrays: Sequence[Any], where: str, names: Sequence[str] | None = None
) -> None:
    """In place. Give each variable the array of its place; `names` are those of the arrays, for messages.

    Raises ConfigurationError, and changes nothing, for another number of arrays or another shape.
    """
    values = [np.asarray(array) for array in arrays]
    check(
        len(variables) == len(values),
        f"{where} has {len(variables)} weights, and {len(values)} were given: "
        f"{listed([variable.path for variable in variables])}",
    )
    for i, (variable, value) in enumerate(zip(variables, values, strict=True)):
        if fault := mismatch(variable, value):
            given = f" ({names[i]})" if names is not None else ""
            raise ConfigurationError(f"{where}: {variable.path}{given} {fault}")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


class Status:
    """What a restore did: `restored` and `missing` are names of the model's variables, `unused` the file's.

    A status that is dropped while values of the file are unused warns once, naming them, unless
    `expect_partial` was called. Source: TensorFlow's load status.
    """

    def __init__(
        self, where: str, restored: Iterable[str], missing: Iterable[str], unused: Iterable[str]
    ) -> None:
        self.where = where
        self.restored = tuple(restored)
        self.missing = tuple(missing)
        self.unused = tuple(unused)
        self.awaited: frozenset[str] = frozenset()
        """Those of `unused` that belong to what is not built yet: no reason for a warning."""
        self._is_silent = False

    def refresh(self) -> None:
        """In place. Take notice of what was restored since, where that goes on."""

    def assert_consumed(self) -> Status:
        """Raise AssertionError unless each value of the file has its variable, and each variable a value."""
        self.refresh()
        if self.unused:
            raise AssertionError(f"{self.where}: values without a variable: {listed(self.unused)}")
        return self.assert_existing_objects_matched()

    def assert_existing_objects_matched(self) -> Status:
        """Raise AssertionError unless every variable of the model got a value."""
        self.refresh()
        if self.missing:
            raise AssertionError(f"{self.where}: variables without a value: {listed(self.missing)}")
        return self

    def assert_nontrivial_match(self) -> Status:
        """Raise AssertionError unless at least one variable got a value."""
        self.refresh()
        if not self.restored:
            raise AssertionError(f"{self.where}: no variable got a value")
        return self

    def check_whole(self) -> Status:
        """In place. As `expect_partial`; IncompatibleCheckpoint unless each variable got a value."""
        if self.missing:
            raise IncompatibleCheckpoint(f"{self.where} has no value for {listed(self.missing)}")
        return self.expect_partial()

    def expect_partial(self) -> Status:
        """In place. Let unused values be no reason for a warning."""
        self._is_silent = True
        return self

    def __del__(self) -> None:
        if self.__dict__.get("_is_silent", True) or sys.is_finalizing():
            return
        self.refresh()
        left = [name for name in self.unused if name not in self.awaited]
        if not left:
            return
        warnings.warn(
            f"{self.where}: {len(left)} values were not restored, as the model has no such variables: "
            f"{listed(left)}; call expect_partial() on what the load returned if that is meant",
            stacklevel=2,
        )


def mismatch(variable: Variable, array: Any) -> str:
    """Why an array cannot be a variable's value, in words; "" if it can."""
    shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    if shape != variable.spec.dims:
        return f"has shape {variable.spec.dims}, and {shape} was found"
    wanted = np.dtype(variable.spec.dtype)
    if dtype.kind != "V" and not np.can_cast(dtype, wanted, "same_kind"):  # V: bfloat16
        return f"has dtype {wanted}, and {dtype} was found"
    return ""


def _refuse_other_nesting(
    variables: Mapping[str, Variable],
    arrays: Mapping[str, Any],
    missing: Sequence[str],
    unused: Sequence[str],
    where: str,
) -> None:
    """Raise IncompatibleCheckpoint where what is unused has its like further in, or further out."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name in missing:
        alike.setdefault((name.rpartition("/")[2], variables[name].spec.dims), []).append(name)
    for name in unused:
        own = name.partition("/")[2] or name
        for other in alike.get((name.rpartition("/")[2], tuple(arrays[name].shape)), ()):
            theirs = other.partition("/")[2] or other
            if theirs.endswith(f"/{own}") or own.endswith(f"/{theirs}"):
                raise IncompatibleCheckpoint(
                    f"{where} holds {own}, and the model has {theirs}: the layers are nested otherwise: load "
                    "into that layer, or into a model like the one that was saved; nothing was changed"
                )
