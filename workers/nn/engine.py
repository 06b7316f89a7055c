"""The engine of a model: its loss and gradient on flat buffers.

A model is traced twice, once for training and once for evaluation. The graphs then run on workspaces that
the next call overwrites: a result is a pure function of the arguments.

A variable that training assigns to (the moving statistics of BatchNormalization) is a part of the state
like any other: where the others have their gradient, it has its new value times the weight of the
microbatch, so that the mean over all microbatches is what it becomes (`workers.nn.optimizers`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from storage.layout import Layout
from storage.layout import Variable as Place
from workers.nn import optimizers
from workers.nn.graph import Graph, trace
from workers.nn.layers.base import collect
from workers.nn.lookup import serialize
from workers.nn.numerics import Array, quiet
from workers.nn.ops.base import Run
from workers.nn.program import Program
from workers.nn.tensor import leaves, map_structure
from workers.reports import mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

    from workers.engine import Batch, Flat, Sums
    from workers.nn.compiled import Compiled
    from workers.nn.model import Model
    from workers.nn.variables import Variable
    from workers.reports import Report
    from workers.rng import Streams

_MAX_PROGRAMS = 8
"""Row counts whose workspaces are kept: microbatches of two sizes, and evaluation's."""
_MAX_VIEWED = 256
"""Flat buffers whose views are kept: parameters, and one gradient slot a microbatch."""


class ModelEngine:
    """`workers.engine.Engine` of a compiled model.

    `dtype` is float32 in all training; float64 serves to check gradients by finite differences.
    """

    def __init__(self, model: Model, compiled: Compiled, dtype: DTypeLike = np.float32) -> None:
        self._model = model
        self._compiled = compiled
        self._dtype: np.dtype[Any] = np.dtype(dtype)
        self._train = traced(model, training=True)
        self._evaluate = traced(model, training=False)
        self._variables = model.named_variables()
        if not self._variables or not model.trainable_weights:
            raise ConfigurationError(
                "the model has nothing to train: add a layer with variables, such as Dense"
            )
        self._places = {id(variable): i for i, variable in enumerate(self._variables.values())}
        self.layout = _layout(self._variables)
        self.assigned = tuple(self._place(self._train.variables[i]) for i, _ in self._train.assignments)
        self.optimizer = optimizers.for_model(
            compiled.optimizer, self.layout, list(self._variables.values()), self.assigned
        )
        outputs = leaves(self._evaluate.structure["outputs"])
        specs = self._evaluate.specs()
        compiled.resolve(
            map_structure(
                lambda place: specs[self._evaluate.outputs[place]].shape, self._evaluate.structure["outputs"]
            )
        )
        names = [report["name"] for report in self.reports()]
        if len(set(names)) != len(names):
            raise ConfigurationError(f"two metrics have the same name in {names}")
        self.metrics = tuple(names)
        self._num_outputs = len(outputs)
        self._loss_scale = compiled.optimizer.loss_scale_factor or 1.0
        learning = {self._place(v) for v in self._train.variables if v.trainable}
        self._untouched = sorted(set(range(len(self._variables))) - learning - set(self.assigned))
        self._programs: dict[tuple[int, bool], Program] = {}
        self._viewed: dict[int, tuple[Array, list[Array]]] = {}

    @property
    def model(self) -> Model:
        """The model that it was made of."""
        return self._model

    # -- what training asks -------------------------------------------------------------------------------

    def init(self, params: Flat, streams: Streams) -> None:
        """In place. Fill `params`: variable number i draws from stream i, unless it was given a value."""
        for i, (view, variable) in enumerate(
            zip(self.layout.views(params).values(), self._variables.values(), strict=True)
        ):
            draw = None if variable.is_given else variable.initializer
            view[...] = variable.array if draw is None else draw(view.shape, streams.generator(i))

    def loss_and_grad(self, params: Flat, batch: Batch, streams: Streams, out: Flat) -> Sums:
        """Write the gradient of the sum over the batch's samples into `out`; return the sums."""
        x, y_true, sample_weight = unpack(batch)
        program = self._program(x, training=True)
        views, gradients = self._views(params), self._views(out)
        graph = self._train
        with quiet():
            found = program.forward(leaves(x), self._of_graph(graph, views), Run(streams))
            slots: list[Array | None] = [None] * len(found)
            slots[: self._num_outputs] = program.output_gradients(self._num_outputs)
            sums = self._sums(graph, found, y_true, sample_weight, slots, streams.share)
            weight = sums[0, 1]
            for place in leaves(graph.structure["losses"]):
                slots[place] = np.full(found[place].shape, weight, found[place].dtype)
            for slot in slots:
                if slot is not None and self._loss_scale != 1.0:  # the optimizer divides by it again
                    slot *= self._loss_scale
            targets = self._of_graph(graph, gradients)
            for place, value in graph.assignments:  # before `backward`, which may overwrite values
                np.multiply(program.value(value), weight, out=targets[place], casting="unsafe")
            program.backward(slots, targets)
            for i in self._untouched:
                gradients[i][...] = 0
        return sums

    def evaluate(self, params: Flat, batch: Batch) -> Sums:
        """The sums of the same metrics, without randomness."""
        x, y_true, sample_weight = unpack(batch)
        with quiet():
            found = self._program(x, training=False).forward(
                leaves(x), self._of_graph(self._evaluate, self._views(params)), Run()
            )
            return self._sums(self._evaluate, found, y_true, sample_weight)

    def predict(self, params: Flat, x: Any) -> Any:
        """The model's output for these samples, as arrays of their own, without randomness."""
        with quiet():
            found = self._program(x, training=False).forward(
                leaves(x), self._of_graph(self._evaluate, self._views(params)), Run()
            )
        return map_structure(lambda place: found[place].copy(), self._evaluate.structure["outputs"])

    def reports(self) -> list[Report]:
        """What the rows of the sums mean."""
        own = [mean(name) for name in self._own_metrics()]
        return [mean("loss"), *(each.metric.report() for each in self._compiled.measured), *own]

    def config(self) -> dict[str, Any]:
        """Model, optimizer, loss and metrics as JSON values."""
        return {
            **serialize(self._model),
            "compile_config": self._compiled.config(),
        }

    # -- parts --------------------------------------------------------------------------------------------

    def _own_metrics(self) -> list[str]:
        return [*self._train.structure["metrics"]]

    def _sums(
        self,
        graph: Graph,
        found: Sequence[Array],
        y_true: Any,
        sample_weight: Array | None,
        slots: Sequence[Array | None] | None = None,
        share: float = 1.0,
    ) -> Sums:
        """The rows of all metrics; the losses' gradients by the outputs are written into `slots`."""
        trues = leaves(y_true)
        masks = [None if place is None else found[place] for place in graph.structure["masks"]]
        if len(trues) != self._num_outputs:
            raise ConfigurationError(
                f"the model has {self._num_outputs} outputs, and the data {len(trues)} targets"
            )
        total, weight = 0.0, 0.0
        for i, loss in enumerate(self._compiled.losses):
            if loss is None:
                if slots is not None:
                    slots[i][...] = 0  # type: ignore[index]  # of an output
                continue
            slot = None if slots is None else slots[i]
            value, divisor = loss.sums(trues[i], found[i], sample_weight, slot, mask=masks[i], share=share)
            scale = self._compiled.weights[i]
            if weight and divisor != weight:  # of outputs with unlike numbers of values
                scale *= weight / divisor
            weight = weight or divisor
            if scale != 1.0 and slot is not None:
                slot *= scale
            total += scale * value
        weight = weight or float(len(found[0]))
        for place in leaves(graph.structure["losses"]):
            total += float(found[place]) * weight
        rows: list[Any] = [[(total, weight)]]
        for each in self._compiled.measured:
            weights = sample_weight if each.weighted else None
            place = each.output
            rows.append(each.metric.sums(trues[place], found[place], weights, masks[place]))
        own = graph.structure["metrics"].values()
        rows += [[(float(found[place].mean()) * weight, weight)] for place in own]
        return np.concatenate(rows, dtype=np.float64)

    def _program(self, x: Any, *, training: bool) -> Program:
        """The workspaces for this number of rows; the least recently made go first."""
        arrays = leaves(x)
        graph = self._train if training else self._evaluate
        if len(arrays) != len(graph.inputs):
            raise ConfigurationError(f"the model has {len(graph.inputs)} inputs, and the data {len(arrays)}")
        key = (len(arrays[0]), training)
        program = self._programs.get(key)
        if program is None:
            if len(self._programs) >= _MAX_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            assigned = {place for place, _ in graph.assignments}
            learning = [i for i, v in enumerate(graph.variables) if v.trainable and i not in assigned]
            wanted = learning if training else []
            program = Program(graph, key[0], wanted, self._dtype)
            self._programs[key] = program
        return program

    def _place(self, variable: Variable) -> int:
        place = self._places.get(id(variable))
        if place is None:
            raise ConfigurationError(
                f"variable {variable.name!r} is used, but no layer of the model holds it: keep it as an "
                "attribute"
            )
        return place

    def _of_graph(self, graph: Graph, views: Sequence[Array]) -> list[Array]:
        return [views[self._place(variable)] for variable in graph.variables]

    def _views(self, flat: Array) -> list[Array]:
        """The views of the variables; cached, as the caller has few buffers."""
        found = self._viewed.get(id(flat))
        if found is not None:  # it holds the buffer, so the id cannot have passed to another one
            return found[1]
        views = list(self.layout.views(flat).values())
        if len(self._viewed) >= _MAX_VIEWED:
            self._viewed.clear()
        self._viewed[id(flat)] = (flat, views)
        return views


def traced(model: Model, *, training: bool) -> Graph:
    """What the model gives, and what is added to its loss and metrics on the way."""

    def step(inputs: Any) -> dict[str, Any]:
        outputs, call = collect(model, inputs, training=training)
        penalties = [v.regularizer(v) for v in model.trainable_weights if v.regularizer is not None]
        return {
            "outputs": outputs,
            "masks": [output.mask for output in leaves(outputs)],
            "losses": [*call.losses, *penalties],
            "metrics": dict(call.metrics),
        }

    return trace(step, model.input_spec)


def _layout(variables: dict[str, Variable]) -> Layout:
    trainable = {path: variable.trainable for path, variable in variables.items()}
    layout = Layout.of({path: variable.spec.dims for path, variable in variables.items()})
    for path, variable in variables.items():
        if variable.dtype != "float32":
            raise ConfigurationError(f"variable {path} is {variable.dtype}: a training state is float32")
    return Layout(
        tuple(Place(p.name, p.offset, p.shape, p.dtype, trainable[p.name]) for p in layout.variables),
        layout.length,
    )


def unpack(batch: Batch) -> tuple[Any, Any, Array | None]:
    """The batch's x, y and, where given, sample weights."""
    if len(batch) not in (2, 3):
        raise ConfigurationError(
            f"the dataset gives {len(batch)} arrays a batch: give (x, y) or (x, y, sample_weight)"
        )
    return batch[0], batch[1], batch[2] if len(batch) == 3 else None
