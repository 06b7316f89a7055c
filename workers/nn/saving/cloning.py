"""A model of the same layers with weights of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.nn.functional import InputLayer
from workers.nn.lookup import check
from workers.nn.model import Functional
from workers.nn.sequential import Sequential
from workers.nn.tensor import map_structure

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.nn.layers.base import Layer


def clone_model(
    model: Any, input_tensors: Any = None, clone_function: Callable[[Layer], Layer] | None = None
) -> Any:
    """A new model of the same architecture: fresh weights, not compiled.

    `input_tensors` take the place of the inputs of a functional model. `clone_function` makes a layer of each
    layer, by default one of the same settings. Raises ConfigurationError for a subclassed model with either.
    """
    clone = clone_function or _clone
    if type(model) is Sequential:
        check(input_tensors is None, "clone_model: input_tensors are for functional models")
        source = [] if model.source is None else [_clone(model.source)]
        return Sequential([*source, *map(clone, model.layers)], model.trainable, model.name)
    if type(model) is Functional:
        inputs = input_tensors
        if inputs is None:
            inputs = map_structure(_fresh_input, model.inputs)
        layers = [layer for layer in model.layers if not isinstance(layer, InputLayer)]
        return model.with_layers({id(layer): clone(layer) for layer in layers}, inputs)
    plain = input_tensors is None and clone_function is None
    check(plain, "clone_model: a subclassed model is cloned as a whole, by its get_config")
    return _clone(model)


def _clone(layer: Any) -> Any:
    return type(layer).from_config(layer.get_config())


def _fresh_input(tensor: Any) -> Any:
    layer = tensor.history.layer
    if isinstance(layer, InputLayer):
        return _clone(layer).output
    return InputLayer(batch_shape=tensor.shape, dtype=tensor.dtype).output
