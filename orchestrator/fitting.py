"""`orchestrator.fit`: a model's `fit`, done by a job."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.spec import Checkpoints, Job
from storage.errors import ConfigurationError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from orchestrator.result import Result
    from workers.nn import Model

T = TypeVar("T")


def fit(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    workers: int | tuple[int, int],
    run_dir: str | os.PathLike[str],
    batch_size: int = 32,
    epochs: int = 1,
    microbatches: int | None = None,
    validation_data: Any = None,
    validation_freq: int = 1,
    shuffle: bool = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    seed: int | None = None,
    checkpoints: Checkpoints | None = None,
    **options: Any,
) -> Result:
    """Train a compiled `workers.nn` model for some epochs in a job, and give it the weights that come of
    it.

    The weights, and the optimizer's state, are to the last bit those of `model.fit` with the same
    `batch_size`, `epochs`, `microbatches` and `seed`, for any number of workers. `x` is an array (a
    structure of them) or a `workers.data` dataset; `validation_data` is `(x, y)`, `(x, y, sample_weight)`
    or a dataset, and evaluated every `validation_freq` epochs. `options` are those of `orchestrator.run`:
    runtime, nodes, address, ...

    Called again with the same arguments it goes on where it stopped. Raises ConfigurationError for a model
    that was trained before: its job begins with its weights, but at step 0.
    """
    from orchestrator import run
    from workers.nn import random
    from workers.nn.feeding import as_dataset, validation_parts, with_class_weight
    from workers.schedule import steps_per_epoch

    if model.optimizer is None:
        raise ConfigurationError(
            'the model is not compiled: call compile first, such as model.compile("adam", "mse")'
        )
    if int(model.optimizer.iterations.numpy()):
        raise ConfigurationError(
            f"the model has been trained for {int(model.optimizer.iterations.numpy())} steps, and jobs begin "
            "at 0: train it further with model.fit, or compile it anew"
        )
    if class_weight is not None:
        sample_weight = with_class_weight(y, sample_weight, class_weight)
    data = as_dataset(x, y, sample_weight)
    validation = None if validation_data is None else as_dataset(*validation_parts(validation_data))
    model.seed = seed if seed is not None else model.seed if model.seed is not None else random.next_seed()
    for variable in model.weights:
        variable.assign(variable.numpy())  # a job draws what was not given a value
    per_epoch = steps_per_epoch(len(data), batch_size)
    job = Job(
        model=partial(_same, model),
        data=partial(_same, data),
        validation=None if validation is None else partial(_same, validation),
        validate_every=per_epoch * validation_freq,
        batch_size=batch_size,
        microbatches=microbatches,
        steps=epochs * per_epoch,
        seed=model.seed,
        shuffle=shuffle,
        checkpoints=checkpoints or Checkpoints(),
    )
    result = run(job, run_dir, workers=workers, **options)
    _take(model, result)
    return result


def _same(value: T) -> T:
    return value


def _take(model: Model, result: Result) -> None:
    """In place. Give the model and its optimizer the state of the run's latest checkpoint."""
    import numpy as np

    import storage

    arrays = storage.load(result.run_dir)
    for path, variable in model.named_variables().items():
        variable.assign(arrays[f"params/{path}"])
    optimizer, trained = model.optimizer, model.trainable_weights
    optimizer.build(trained)
    for slot, variables in optimizer.slot_variables.items():
        for target, state in zip(trained, variables, strict=True):
            state.assign(arrays[f"slots/{slot}/{target.path}"])
    optimizer.iterations.assign(np.int64(result.step))
