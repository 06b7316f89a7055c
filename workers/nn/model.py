"""Models: layers put together, compiled with an optimizer, a loss and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import optimizers
from workers.nn.compiled import Compiled
from workers.nn.functional import in_keras_order, layers_between, replay
from workers.nn.functional_config import from_config, to_config
from workers.nn.layers.base import Layer, unique_name
from workers.nn.layers.registry import LAYERS
from workers.nn.lookup import check
from workers.nn.storable import Storable
from workers.nn.summary import summary_text
from workers.nn.tensor import KerasTensor, Spec, leaves, map_structure
from workers.nn.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike

    from workers.nn.engine import ModelEngine
    from workers.nn.local import LocalTraining
    from workers.nn.variables import Variable


class Model(Trainer, Storable, Layer):
    """A layer that can be trained. `nn.Model(inputs, outputs)` is a functional model; a subclass gives
    `call`.

    A layer that was given no name gets that of its class, numbered within the model: "dense", "dense_1".
    Variables are named after it: "dense/kernel"; in a subclass after the attribute.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A `Functional` where inputs and outputs are given."""
        given = (len(args) >= 2 or "outputs" in kwargs) and cls is Model
        return super().__new__(Functional if given else cls)

    def __init__(self, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._compiled: Compiled | None = None
        self._local: LocalTraining | None = None
        self.seed: int | None = None
        self.stop_training = False

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """A new model of these settings; `nn.Model` takes those of a functional one."""
        if cls is Model and "input_layers" in config:
            return Functional.from_config(config)
        return super().from_config(config)

    # -- layers -------------------------------------------------------------------------------------------

    @property
    def layers(self) -> list[Layer]:
        """The layers that the model holds itself."""
        return [child for _, child in self.children() if isinstance(child, Layer)]

    def _beside(self, layers: Sequence[Layer]) -> Iterator[tuple[str, Layer | Variable]]:
        """What a model of such layers keeps as attributes of its own class."""
        known = {id(layer) for layer in layers}
        yield from ((key, child) for key, child in super().children() if id(child) not in known)

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """A layer by its name or by its place. ConfigurationError if there is none."""
        if index is not None:
            check(-len(self.layers) <= index < len(self.layers), f"the model has {len(self.layers)} layers")
            return self.layers[index]
        for key, child in self.children():
            if isinstance(child, Layer) and name in (child.name, key):
                return child
        raise ConfigurationError(
            f"the model has no layer {name!r}: it has {', '.join(layer.name for layer in self.layers)}"
        )

    @property
    def input_spec(self) -> Any:
        """A structure of the specs of what goes in; ConfigurationError if it is not known yet."""
        if self._built_with is None:
            raise ConfigurationError(
                "the model's input shape is unknown: begin it with nn.Input((features,)), call it, or "
                "build it"
            )
        return _specs(self._built_with, self.dtype)

    @property
    def input_shape(self) -> Any:
        """The shape of what goes in; None stands for the number of samples."""
        return map_structure(lambda spec: spec.shape, self.input_spec)

    @property
    def output_shape(self) -> Any:
        """The shape of what comes out; None stands for the number of samples."""
        return self.compute_output_shape(self.input_shape)

    def build(self, input_shape: Any) -> None:
        """Make all variables, for this shape of the input; None is the number of samples."""
        self.built = True  # a call builds no model again
        self.compute_output_shape(input_shape)

    def summary(
        self, line_length: int | None = None, print_fn: Callable[[str], object] | None = None
    ) -> None:
        """Print the layers, the shapes they give and the numbers of their parameters, as Keras does."""
        (print if print_fn is None else print_fn)(summary_text(self, line_length))

    # -- training -----------------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        metrics: Any = None,
        loss_weights: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: str | bool = "auto",
        auto_scale_loss: bool = True,
    ) -> None:
        """In place. Say how the model is trained; each may be an object or its Keras name.

        `loss` and `metrics` of a model with several outputs are structures as the outputs are. The last
        four are taken for Keras's sake: a model is always traced once, and runs a step at a time.
        """
        if isinstance(metrics, str):
            raise ConfigurationError(f"compile: metrics must be a list, such as [{metrics!r}]")
        self._compiled = Compiled(
            optimizers.get(optimizer), loss, loss_weights, metrics or [], weighted_metrics or []
        )
        if self.built:
            self._compiled.resolve(self.output_shape)

    @property
    def optimizer(self) -> Any:
        """The optimizer that the model was compiled with; None before."""
        return None if self._compiled is None else self._compiled.optimizer

    def engine(self, dtype: DTypeLike = np.float32) -> ModelEngine:
        """What the runtime trains, as `workers.engine.Engine`; all training is in float32."""
        from workers.nn.engine import ModelEngine

        if self._compiled is None:
            raise ConfigurationError(
                'the model is not compiled: call compile first, such as model.compile("adam", "mse")'
            )
        return ModelEngine(self, self._compiled, dtype)


class Functional(Model):
    """A model of the layers that lead from some tensors to others."""

    def __init__(
        self, inputs: Any = None, outputs: Any = None, *, name: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(name=name or "functional", **kwargs)
        for tensor in leaves((inputs, outputs)):
            if not isinstance(tensor, KerasTensor):
                raise ConfigurationError(f"Model: inputs and outputs are made of nn.Input, not {tensor!r}")
        self.inputs = inputs
        self.outputs = outputs
        self._added_losses: list[KerasTensor] = []
        self._added_metrics: dict[str, KerasTensor] = {}
        self._connect()
        self._built_with = map_structure(lambda tensor: tensor.shape, inputs)
        self.built = True

    @property
    def _ends(self) -> tuple[Any, list[KerasTensor], dict[str, KerasTensor]]:
        """All that is computed: what comes out, and what was added to be trained on, or to be told."""
        return self.outputs, self._added_losses, self._added_metrics

    def _connect(self) -> None:
        """In place. Find the layers between the inputs and all that is computed."""
        self._order = layers_between(self.inputs, self._ends)
        sources = [t.history.layer for t in leaves(self.inputs) if t.history is not None]
        self._functional_layers = in_keras_order(self._ends, self._order, sources)
        name_layers(self._functional_layers)

    def add_loss(self, loss: Any) -> None:
        """Add scalar tensors of the model's own to what training minimises; or within `call`, as any layer.

        Raises ConfigurationError for a tensor that is no scalar, or does not come from the inputs.
        """
        given = leaves(loss)
        if not any(isinstance(each, KerasTensor) for each in given):
            super().add_loss(loss)
            return
        for each in given:
            scalar = isinstance(each, KerasTensor) and each.shape == ()
            check(scalar, f"{self.name}: add_loss takes scalar tensors of the model, not {each!r}")
        layers_between(self.inputs, given)
        self._added_losses += given
        self._connect()

    def add_metric(self, value: Any, name: str | None = None) -> None:
        """Report the mean of a tensor of the model's own by this name; or within `call`, as any layer.

        Raises ConfigurationError without a name of its own.
        """
        if not isinstance(value, KerasTensor):
            super().add_metric(value, name)
            return
        check(
            bool(name) and name not in self._added_metrics, f"{self.name}: add_metric needs a name of its own"
        )
        layers_between(self.inputs, value)
        self._added_metrics[str(name)] = value
        self._connect()

    @property
    def without_added(self) -> Functional:
        """The model of the same layers without what `add_loss` and `add_metric` added to it itself."""
        if not self._added_losses and not self._added_metrics:
            return self
        plain = Functional(self.inputs, self.outputs, name=self.name)
        plain._trainable = self._trainable
        return plain

    @property
    def input(self) -> Any:
        """The tensors that come in."""
        return self.inputs

    @property
    def output(self) -> Any:
        """The tensors that come out."""
        return self.outputs

    @property
    def layers(self) -> list[Layer]:
        """The layers from the inputs to all that is computed."""
        return list(self._functional_layers)

    def children(self) -> Iterator[tuple[str, Layer | Variable]]:
        """The model's layers by name, and what a subclass keeps as attributes beside them."""
        yield from ((layer.name, layer) for layer in self._functional_layers)
        yield from self._beside(self._functional_layers)

    @property
    def input_spec(self) -> Any:
        """A structure of the specs of what goes in."""
        return map_structure(lambda tensor: tensor.spec, self.inputs)

    @property
    def output_shape(self) -> Any:
        """The shape of what comes out; None stands for the number of samples."""
        return map_structure(lambda tensor: tensor.shape, self.outputs)

    def call(self, inputs: Any) -> Any:
        """What the layers give."""
        outputs, losses, metrics = replay(self.inputs, self._ends, self._order, inputs)
        for loss in losses:
            super().add_loss(loss)
        for name, value in metrics.items():
            super().add_metric(value, name)
        return outputs

    def with_layers(self, instead: Mapping[int, Layer], inputs: Any) -> Functional:
        """A model of the same calls of other layers, by the id of those here, from `inputs` on."""
        return self._of(inputs, replay(self.inputs, self._ends, self._order, inputs, instead), self.name)

    @classmethod
    def _of(cls, inputs: Any, ends: Any, name: str) -> Functional:
        outputs, losses, metrics = ends
        model = cls(inputs, outputs, name=name)
        if losses:
            model.add_loss(losses)
        for key, value in metrics.items():
            model.add_metric(value, key)
        return model

    def get_config(self) -> dict[str, Any]:
        """The architecture as JSON values: no weights, no compile settings."""
        parts = to_config(self._functional_layers, self._order, self.inputs, self._ends)
        outputs, losses, metrics = parts.pop("output_layers")
        config = {"name": self.name, "trainable": self.trainable, **parts, "output_layers": outputs}
        if losses:
            config["added_losses"] = losses
        if metrics:
            config["added_metrics"] = metrics
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Functional:
        """A new, uncompiled model of the same architecture."""
        ends = [config["output_layers"], config.get("added_losses", []), config.get("added_metrics", {})]
        inputs, found = from_config({**config, "output_layers": ends})
        model = cls._of(inputs, found, config["name"])
        if not config.get("trainable", True):
            model.trainable = False
        return model


def name_layers(layers: Sequence[Layer]) -> None:
    """In place. Give a name of its class, numbered, to each layer without one; names must be different."""
    taken: set[str] = set()
    for layer in layers:
        if layer.is_named:
            check(layer.name not in taken, f"two layers are named {layer.name!r}: give each its own name=")
            taken.add(layer.name)
    for layer in layers:
        if not layer.is_named:
            layer.name = unique_name(layer.stem, taken)
            taken.add(layer.name)


def _specs(shapes: Any, dtype: str) -> Any:
    if isinstance(shapes, dict):
        return {key: _specs(shape, dtype) for key, shape in shapes.items()}
    if all(n is None or isinstance(n, int) for n in shapes):
        return Spec((None, *shapes[1:]), dtype)
    return tuple(_specs(shape, dtype) for shape in shapes)


LAYERS["Functional"] = Functional
