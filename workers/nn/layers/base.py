"""Layers: what they are made of, and what happens when one is called.

A layer keeps its sub-layers and variables as plain attributes (also in lists, tuples and dicts); they are
found in the order in which they were set, and their paths are those of the attributes:
"encoder/dense/kernel".
"""

from __future__ import annotations

import functools
import inspect
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import activations, initializers, regularizers
from workers.nn.awaited import Awaited
from workers.nn.lookup import snake_case
from workers.nn.tensor import FLOATX, Dims, KerasTensor, Spec, Symbol, Tensor, leaves, map_structure
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import DTypeLike

    from workers.nn.numerics import Array

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")

LayerType = TypeVar("LayerType", bound="Layer")


@dataclass(slots=True)
class Call:
    """What the layers within one outermost call share."""

    training: bool
    losses: list[Any] = field(default_factory=list)
    metrics: list[tuple[str, Any]] = field(default_factory=list)


class _Current(threading.local):
    call: Call | None = None


_current = _Current()


def _building(build: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """A `build` after which the layer is built, whoever called it; once is enough."""

    @functools.wraps(build)
    def build_once(self: Any, input_shape: Any) -> None:
        if not self.built:
            self._built_with = input_shape
            build(self, input_shape)
            self.built = True
            self.tell_more()

    return build_once


class Layer(Awaited):
    """Base of all layers. A subclass gives `call`, and makes its variables in `__init__` or `build`.

        class Scale(nn.Layer): def build(self, input_shape): self.scale =
        self.add_weight(shape=(input_shape[-1],), initializer="ones")

            def call(self, inputs): return inputs * self.scale

    `call` is written with Python's operators and `nn.ops`; gradients follow. It may take `training`
    (whether the model is being trained) and `mask`.
    """

    supports_masking = False
    """Whether a mask of the input is one of the output, unless `compute_mask` says otherwise."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "build" in vars(cls):
            cls.build = _building(cls.build)  # type: ignore[method-assign]

    def __init__(
        self,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: DTypeLike | None = None,
        activity_regularizer: Any = None,
        input_shape: Sequence[int | None] | None = None,
    ) -> None:
        if name is not None and (not isinstance(name, str) or not _NAME.fullmatch(name)):
            raise ConfigurationError(
                f"layer name {name!r}: use letters, digits, '_', '-' and '.', with no '-' or '.' first"
            )
        self._name = name
        self._trainable = bool(trainable)
        self._dtype = np.dtype(dtype or FLOATX).name
        self._input_shape = None if input_shape is None else tuple(input_shape)
        self._built_with: Any = None
        self._calls: list[Any] = []  # in functional models
        self._last_call: Call | None = None
        self.built = False
        self.activity_regularizer = regularizers.get(activity_regularizer)

    # -- names --------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name; that of the class in snake case where none was given."""
        return self._name or self.stem

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    @property
    def stem(self) -> str:
        """What a model names the layer after, where it was given no name."""
        return snake_case(type(self).__name__)

    @property
    def is_named(self) -> bool:
        """Whether a name was given, by the user or by a model that holds the layer."""
        return self._name is not None

    @property
    def dtype(self) -> str:
        """The dtype of the layer's weights and results."""
        return self._dtype

    @property
    def input(self) -> Any:
        """What the layer was first called with in a functional model. ConfigurationError if it was not."""
        args = self._first_call().args
        return args[0] if args else self.output

    @property
    def output(self) -> Any:
        """What the layer's first call in a functional model gives. ConfigurationError if there was none."""
        return self._first_call().outputs

    def _first_call(self) -> Any:
        if not self._calls:
            raise ConfigurationError(f"{self.name} was not called on the tensors of a functional model")
        return self._calls[0]

    # -- parts --------------------------------------------------------------------------------------------

    def children(self) -> Iterator[tuple[str, Layer | Variable]]:
        """The layer's own variables and sub-layers, each once, by the last part of their path."""
        seen: set[int] = set()
        for key, value in vars(self).items():
            if key not in _OWN:
                yield from _tracked(key, value, seen)

    def layers_within(self) -> Iterator[Layer]:
        """This layer and all below it, each once."""
        seen: set[int] = set()

        def walk(layer: Layer) -> Iterator[Layer]:
            if id(layer) in seen:
                return
            seen.add(id(layer))
            yield layer
            for _, child in layer.children():
                if isinstance(child, Layer):
                    yield from walk(child)

        return walk(self)

    def named_variables(self) -> dict[str, Variable]:
        """All variables by path: the layer's own first, then those of its sub-layers."""
        found: dict[str, Variable] = {}
        seen: set[int] = set()

        def walk(layer: Layer, prefix: str) -> None:
            if id(layer) in seen:
                return
            seen.add(id(layer))
            own = [(key, child) for key, child in layer.children() if isinstance(child, Variable)]
            for key, variable in sorted(own, key=lambda item: not item[1].trainable_in_principle):
                if id(variable) in seen:
                    continue
                seen.add(id(variable))
                stem = prefix + (variable.name if variable.name != "variable" else key)
                path, number = stem, 0
                while path in found:
                    number += 1
                    path = f"{stem}_{number}"
                variable.path = path
                found[path] = variable
            for key, child in layer.children():
                if isinstance(child, Layer):
                    walk(child, f"{prefix}{key}/")

        walk(self, "")
        return found

    @property
    def weights(self) -> list[Variable]:
        """All variables: a layer's own, trainable ones first, then those of its sub-layers."""
        return list(self.named_variables().values())

    @property
    def variables(self) -> list[Variable]:
        """The same as `weights`."""
        return self.weights

    @property
    def trainable_weights(self) -> list[Variable]:
        """The variables that training changes by their gradients."""
        return [variable for variable in self.weights if variable.trainable] if self.trainable else []

    @property
    def trainable_variables(self) -> list[Variable]:
        """The same as `trainable_weights`."""
        return self.trainable_weights

    @property
    def non_trainable_weights(self) -> list[Variable]:
        """The other variables."""
        trainable = set(map(id, self.trainable_weights))
        return [variable for variable in self.weights if id(variable) not in trainable]

    @property
    def non_trainable_variables(self) -> list[Variable]:
        """The same as `non_trainable_weights`."""
        return self.non_trainable_weights

    @property
    def trainable(self) -> bool:
        """Whether training changes the variables. Setting it sets it for all sub-layers."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for layer in self.layers_within():
            layer._trainable = bool(value)
            for _, child in layer.children():
                if isinstance(child, Variable) and child.trainable_in_principle:
                    child.trainable = bool(value)

    def count_params(self) -> int:
        """The number of all variables' elements."""
        return sum(variable.size for variable in self.weights)

    def get_weights(self) -> list[Array]:
        """Copies of all variables' values, in the order of `weights`."""
        return [variable.numpy().copy() for variable in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """In place. Give all variables values. ValueError, and nothing is changed, if one does not fit."""
        from workers.nn.saving.state import assign_in_order

        assign_in_order(self.weights, weights, self.name)

    # -- what a subclass uses -----------------------------------------------------------------------------

    def add_weight(
        self,
        shape: Sequence[int] | None = None,
        initializer: Any = None,
        dtype: DTypeLike | None = None,
        trainable: bool = True,
        regularizer: Any = None,
        constraint: Any = None,
        name: str | None = None,
    ) -> Variable:
        """A new variable. Keep it as an attribute of the layer: that is how it is found."""
        from workers.nn import constraints

        chosen = initializer
        if chosen is None:
            chosen = "glorot_uniform" if np.dtype(dtype or self._dtype).kind == "f" else "zeros"
        variable = Variable(
            initializers.get(chosen),
            () if shape is None else shape,
            dtype or self._dtype,
            trainable,
            name or "variable",
            regularizer=regularizers.get(regularizer),
            constraint=constraints.get(constraint),
        )
        if trainable and not self._trainable:
            variable.trainable = False
        return variable

    add_variable = add_weight

    def add_loss(self, loss: Any) -> None:
        """Within `call`: add a scalar tensor to what training minimises."""
        if _current.call is None:
            raise ConfigurationError(f"{self.name}: add_loss is for use within call")
        _current.call.losses += leaves(loss)

    def add_metric(self, value: Any, name: str | None = None) -> None:
        """Within `call`: report the mean of a tensor, by this name."""
        if _current.call is None:
            raise ConfigurationError(f"{self.name}: add_metric is for use within call")
        _current.call.metrics.append((name or self.name, value))

    @property
    def losses(self) -> list[Any]:
        """The regularizers' losses, and what `add_loss` added in the last call by hand."""
        found = [v.regularizer(v) for v in self.trainable_weights if v.regularizer is not None]
        return found + (self._last_call.losses if self._last_call is not None else [])

    # -- what a subclass gives ----------------------------------------------------------------------------

    @_building
    def build(self, input_shape: Any) -> None:
        """Make the variables, for this shape of the input; None is the number of samples."""

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The output."""
        raise NotImplementedError(f"{type(self).__name__} gives no call")

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The mask of the output."""
        return mask if self.supports_masking else None

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the output, from that of the input; found by tracing `call`."""
        specs = self.compute_output_spec(
            _map_shapes(lambda shape: Spec(tuple(shape), self._dtype), input_shape)
        )
        return map_structure(lambda spec: spec.shape, specs)

    def compute_output_spec(self, inputs: Any) -> Any:
        """The specs of the output, from those of the inputs; found by tracing `call`."""
        from workers.nn.graph import trace

        graph = trace(self, inputs)
        specs = graph.specs()
        return map_structure(lambda place: specs[graph.outputs[place]], graph.structure)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values, such that `cls(**config)` makes an equal layer.

        A subclass adds its own to `super().get_config()`.
        """
        config: dict[str, Any] = {"name": self._name, "trainable": self._trainable}
        if self._dtype != FLOATX:
            config["dtype"] = self._dtype
        return config

    @classmethod
    def from_config(cls: type[LayerType], config: dict[str, Any]) -> LayerType:
        """A new layer of these settings."""
        return cls(**config)

    def get_build_config(self) -> dict[str, Any] | None:
        """What `build` was called with."""
        if self._built_with is None:
            return None
        return {"input_shape": _map_shapes(list, self._built_with)}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """In place. Build the layer as the one that gave this `get_build_config`, where it says a shape."""
        if config.get("input_shape") is not None:
            self.build(_map_shapes(tuple, config["input_shape"]))

    # -- the call -----------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the layer to arrays or tensors; builds it first, where that was not done."""
        args, kwargs = _as_tensors(args, self._dtype), _as_tensors(kwargs, self._dtype)
        if any(isinstance(leaf, KerasTensor) for leaf in leaves((args, kwargs))):
            from workers.nn.functional import call_with_keras_tensors

            return call_with_keras_tensors(self, args, kwargs)
        outer = _current.call
        accepted = _accepted(type(self))
        training = kwargs.pop("training", None)
        if training is None:
            training = outer.training if outer is not None else False
        call = outer or Call(bool(training))
        before, call.training = call.training, bool(training)
        _current.call = call
        try:
            self._ensure_built(args[0] if args else next(iter(kwargs.values()), None))
            if "training" in accepted:
                kwargs["training"] = bool(training)
            masks = map_structure(lambda tensor: getattr(tensor, "mask", None), args[0]) if args else None
            if "mask" in accepted and kwargs.get("mask") is None and leaves(masks):
                kwargs["mask"] = masks
            output = self.call(*args, **kwargs)
            if args and (self.supports_masking or leaves(masks)):
                mask = kwargs.get("mask")
                _set_masks(output, self.compute_mask(args[0], masks if mask is None else mask))
            if self.activity_regularizer is not None:
                call.losses += [self.activity_regularizer(leaf) for leaf in leaves(output)]
        finally:
            call.training = before
            _current.call = outer
        if outer is None:
            self._last_call = call
        return output

    def _ensure_built(self, inputs: Any) -> None:
        if not self.built:
            self.build(map_structure(lambda tensor: tensor.spec.shape, inputs))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name}>"


_OWN = frozenset(
    {
        "_name",
        "_trainable",
        "_dtype",
        "_input_shape",
        "_built_with",
        "_calls",
        "_last_call",
        "_local",
        "_compiled",
    }
)
"""Attributes of `Layer` itself, in which no variables are looked for."""


def current_call() -> Call | None:
    """What the layers of the call under way share."""
    return _current.call


def collect(layer: Layer, inputs: Any, *, training: bool) -> tuple[Any, Call]:
    """The output of a layer, and the losses and metrics that were added on the way."""
    outer, _current.call = _current.call, Call(training)
    call = _current.call
    try:
        return layer(inputs, training=training), call
    finally:
        _current.call = outer


def _tracked(key: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Layer | Variable):
        if id(value) not in seen:
            seen.add(id(value))
            yield key, value
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _tracked(f"{key}/{i}", item, seen)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _tracked(f"{key}/{name}", item, seen)


_accepts: dict[type, frozenset[str]] = {}


def _accepted(cls: type[Layer]) -> frozenset[str]:
    """Which of `training` and `mask` the class's `call` takes."""
    if cls not in _accepts:
        _accepts[cls] = frozenset(inspect.signature(cls.call).parameters) & {"training", "mask"}
    return _accepts[cls]


def _as_tensors(structure: Any, dtype: str) -> Any:
    """Arrays, and lists of numbers, as tensors; floats in the layer's dtype."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            return Tensor(leaf.astype(dtype) if leaf.dtype.kind == "f" and leaf.dtype.name != dtype else leaf)
        return leaf

    return map_structure(convert, structure)


def _set_masks(output: Any, mask: Any) -> None:
    """In place. Give tensors their masks, in the same structure of lists and tuples; None changes nothing."""
    if isinstance(output, list | tuple) and isinstance(mask, list | tuple):
        for each, its_mask in zip(output, mask, strict=True):
            _set_masks(each, its_mask)
    elif isinstance(mask, Tensor | Symbol) and isinstance(output, Tensor | Symbol):
        output.mask = mask


def _map_shapes(function: Any, shapes: Any) -> Any:
    """`function` of each shape in a structure of shapes."""
    if isinstance(shapes, dict):
        return {key: _map_shapes(function, shape) for key, shape in shapes.items()}
    if all(isinstance(n, int | None) for n in shapes):
        return function(shapes)
    return [_map_shapes(function, shape) for shape in shapes]


def unique_name(stem: str, taken: set[str]) -> str:
    """`stem`, or with the first number that is free."""
    name, number = stem, 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    return name


__all__ = ["Call", "Dims", "Layer", "activations", "collect", "current_call", "unique_name"]
