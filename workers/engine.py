"""What training asks of a model: the seam between the runtime and any numerical core.

An `Engine` holds no training state. Parameters come as one flat buffer, the gradient is written into
another; both live in memory shared by all workers of the node. `workers.nn` models are engines by way
of `as_engine`; a hand-written gradient or another framework implements the protocol itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from storage.layout import Layout
    from workers.rng import Streams

Flat: TypeAlias = NDArray[np.float32]
"""A contiguous float32 buffer, or a slice of one, in layout order."""

Batch: TypeAlias = tuple[Any, ...]
"""What a dataset returns for some samples, first axis = sample: usually `(x, y)` or `(x, y, sample_weight)`.

Each is an array, or a tuple or a dict of such (`workers.data.parts.Part`).
"""

Sums: TypeAlias = NDArray[np.float64]
"""Shape (rows, 2), added over microbatches and workers. A metric is one row, a sum over samples and the
weight to divide it by, unless the engine has a method `reports()` that says otherwise; see
`workers.reports`."""


class Optimizer(Protocol):
    """Named slots and one elementwise update, applied to any piece of the flat buffers."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state arrays kept beside the parameters, such as ("adam_m", "adam_v")."""

    @property
    def whole(self) -> tuple[tuple[int, int], ...]:
        """Ranges [start, stop) of the buffers that no piece may cut, in ascending order."""

    @property
    def measures(self) -> bool:
        """Whether `update` needs sums over the whole gradient: to clip by its norm."""

    def measure(self, step: int, start: int, slots: Sequence[Flat], grad: Flat) -> NDArray[np.float64]:
        """What this piece of the mean gradient adds to the sums, such as squares by variable.

        Always as many numbers. `workers.updates.measured` adds them up over all blocks.
        """

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
        """Write the state after step `step` (counted from 0) into `new_params` and `new_slots`.

        All arrays are equally long pieces of the flat buffers that begin at element `start`; `grad` is the
        mean gradient. Only `new_params`, `new_slots` and `scratch` are written, each element of the first two
        once, after which its old value is not read: they may be `params` and `slots` themselves. The result
        of an element does not depend on where the buffers are cut, except within `whole`.

        `sums` is what `measure` gave, added up over the whole gradient. `knobs` are settings that something
        has changed during training, such as {"learning_rate": 0.0005}: they go before the optimizer's own.
        """

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""


@runtime_checkable
class Engine(Protocol):
    """A model as training sees it: initial parameters, and a loss with its gradient."""

    @property
    def layout(self) -> Layout:
        """Names, shapes and places of the parameters in the flat buffer."""

    @property
    def optimizer(self) -> Optimizer:
        """How a gradient becomes the next state."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what `Sums` tell; the first is "loss"."""

    def init(self, params: Flat, streams: Streams) -> None:
        """In place. Fill `params` (zeros before) with initial values drawn from `streams` alone."""

    def loss_and_grad(self, params: Flat, batch: Batch, streams: Streams, out: Flat) -> Sums:
        """Write the gradient of the **sum** over the batch's samples into `out`; return the sums.

        Every parameter's element of `out` is written, whatever it held before; gaps between parameters are
        left alone. Row 0 of the result is (summed loss, weight); the gradients of all microbatches are added
        and then divided by the added weights. Randomness comes from `streams` alone.
        """

    def evaluate(self, params: Flat, batch: Batch) -> Sums:
        """The sums of the same metrics, without randomness."""

    def config(self) -> dict[str, Any]:
        """A declarative description as JSON values, stored in the run's identity."""


def as_engine(model: object) -> Engine:
    """The engine of what a job's `model` function returned.

    Raises ConfigurationError if it is neither an engine nor a compiled `nn` model.
    """
    make = getattr(model, "engine", None)
    if callable(make):
        model = make()
    if isinstance(model, Engine):
        return model
    raise ConfigurationError(
        f"the job's model function returned {type(model).__name__}, which cannot be trained: return a "
        "compiled nn.Sequential, or an object with the methods of workers.engine.Engine"
    )
