"""The state of a model that is trained on this machine alone, and one step of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workers.arithmetic import as_workers_compute
from workers.nn.numerics import aligned_empty
from workers.nn.tensor import leaves, map_structure
from workers.reports import reports_of
from workers.rng import Streams
from workers.schedule import blocks, microbatches, tree_depth, tree_sum
from workers.updates import BLOCK, MeanGradient, longest_block, measured, update_block

if TYPE_CHECKING:
    from workers.engine import Sums
    from workers.nn.model import Model
    from workers.nn.numerics import Array


class LocalTraining:
    """Flat buffers that hold the variables and the optimizer's state; steps update them in place."""

    def __init__(self, model: Model) -> None:
        self.engine = engine = model.engine()
        self.reports = reports_of(engine)
        self._made_for = _state_of(model)
        self._optimizer = model.optimizer
        length = engine.layout.length
        self._params = _zeros(length)
        for variable, view in zip(model.weights, engine.layout.views(self._params).values(), strict=True):
            view[...] = variable.array
            variable.bind(view)
        self._optimizer.build(model.trainable_weights)
        places = {id(variable): i for i, variable in enumerate(model.weights)}
        self._slots = []
        for name in engine.optimizer.slots:
            flat = _zeros(length)
            views = list(engine.layout.views(flat).values())
            for target, slot in zip(
                model.trainable_weights, self._optimizer.slot_variables[name], strict=True
            ):
                view = views[places[id(target)]]
                view[...] = slot.array
                slot.bind(view)
            self._slots.append(flat)
        self._grads: list[Array] = []
        self._work = np.empty((0, 0), np.float32)

    def fits(self, model: Model) -> bool:
        """Whether the model is still what this was made for: compiled, frozen and built as it was."""
        return self._made_for == _state_of(model)

    def step(self, batch: Any, seed: int, count: int) -> Sums:
        """In place. Train on a batch, cut into `count` microbatches; the sums of all metrics."""
        with as_workers_compute():
            return self._step(batch, seed, count)

    def _step(self, batch: Any, seed: int, count: int) -> Sums:
        step = self._optimizer.steps
        rows = len(leaves(batch)[0])
        bounds = microbatches(rows, count)
        while len(self._grads) < len(bounds):
            self._grads.append(_zeros(self.engine.layout.length))
        sums = []
        for item, (low, high) in enumerate(bounds):
            part = batch if len(bounds) == 1 else map_structure(lambda a: a[low:high], batch)  # noqa: B023
            streams = Streams(seed, step, item, share=(high - low) / rows)
            sums.append(self.engine.loss_and_grad(self._params, part, streams, self._grads[item]))
        total = tree_sum(sums, list(np.empty((tree_depth(len(sums)), *sums[0].shape))))
        self._update(step, self._grads[: len(bounds)], np.float32(total[0, 1]))
        self._optimizer.steps = step + 1
        return np.array(total)

    def evaluate(self, batch: Any) -> Sums:
        """The sums of all metrics over a batch."""
        with as_workers_compute():
            return self.engine.evaluate(self._params, batch)

    def _update(self, step: int, grads: list[Array], weight: np.float32) -> None:
        optimizer, length = self.engine.optimizer, self.engine.layout.length
        shape = (tree_depth(len(grads)) + 2, longest_block(length, optimizer.whole))
        if self._work.shape != shape:
            self._work = np.empty(shape, np.float32)
        mean = MeanGradient(grads, None, weight or np.float32(1), self._work[:-1])
        sums = measured(optimizer, step, self._slots, mean, length)
        state, knobs = (self._params, self._slots), self._knobs()
        for ends in blocks(0, length, BLOCK, optimizer.whole):
            update_block(
                optimizer, step, ends, state, state, mean(*ends), weight, self._work[-1], sums, knobs
            )

    def _knobs(self) -> dict[str, float]:
        """What callbacks may have changed since the engine was made."""
        return {"learning_rate": float(self._optimizer.learning_rate)}


def _zeros(length: int) -> Array:
    found = aligned_empty((length,), np.dtype(np.float32))
    found[...] = 0
    return found


def _state_of(model: Model) -> tuple[Any, ...]:
    flags = tuple((id(variable), variable.trainable) for variable in model.weights)
    return id(model._compiled), model.trainable, flags
