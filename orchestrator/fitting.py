"""`orchestrator.fit`: a model's `fit`, done by a job."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.discretion import discretion
from orchestrator.spec import Checkpoints, Job
from storage.errors import ConfigurationError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from storage.run_directory import RunDirectory
    from workers.nn import Model
    from workers.nn.callbacks import Callback, History

T = TypeVar("T")


@discretion()
def fit(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    workers: int | tuple[int, int],
    run_dir: str | os.PathLike[str],
    batch_size: int = 32,
    epochs: int = 1,
    callbacks: Iterable[Callback] = (),
    microbatches: int | None = None,
    validation_data: Any = None,
    validation_freq: int = 1,
    shuffle: bool = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    seed: int | None = None,
    checkpoints: Checkpoints | None = None,
    **options: Any,
) -> History:
    """Train a compiled `workers.nn` model for some epochs in a job, and give it the weights that come of
    it. What it returns has the metrics of each epoch in `history`, and how the run stands in `result`.

    The weights, and the optimizer's state, are to the last bit those of `model.fit` with the same
    `batch_size`, `epochs`, `microbatches` and `seed`, for any number of workers. `x` is an array (a
    structure of them) or a `workers.data` dataset; `validation_data` is `(x, y)`, `(x, y, sample_weight)`
    or a dataset, and evaluated every `validation_freq` epochs. `options` are those of `orchestrator.run`:
    runtime, nodes, address, ...

    `callbacks` are asked on a worker, of every node, at the end of each epoch: what they remember, the
    learning rate and the end of training are a part of the run's state. Those that only write down what
    happens (`CSVLogger`, `LambdaCallback`, any whose class says `observes = True`) are told here, when the
    job has ended, of all its epochs. None can follow batches, or change weights.

    Called again with the same arguments it goes on where it stopped. Raises ConfigurationError for a model
    that was trained before: its job begins with its weights, but at step 0.
    """
    from orchestrator import run
    from storage.run_directory import RunDirectory
    from storage.store import open_store
    from workers.nn import random
    from workers.nn.callbacks.jobs import of_job
    from workers.nn.feeding import as_dataset, validation_parts, with_class_weight
    from workers.schedule import steps_per_epoch

    if model.optimizer is None:
        raise ConfigurationError(
            'the model is not compiled: call compile first, such as model.compile("adam", "mse")'
        )
    if model.optimizer.steps:
        raise ConfigurationError(
            f"the model has been trained for {model.optimizer.steps} steps, and jobs begin "
            "at 0: train it further with model.fit, or compile it anew"
        )
    if class_weight is not None:
        sample_weight = with_class_weight(y, sample_weight, class_weight)
    data = as_dataset(x, y, sample_weight)
    validation = None if validation_data is None else as_dataset(*validation_parts(validation_data))
    model.seed = seed if seed is not None else model.seed if model.seed is not None else random.next_seed()
    for variable in model.weights:
        variable.assign(variable.numpy())  # a job draws what was not given a value
    told = [*callbacks]
    asked = of_job([callback for callback in told if not getattr(callback, "observes", False)])
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
        callbacks=asked,
        checkpoints=checkpoints or Checkpoints(),
    )
    result = run(job, run_dir, workers=workers, **options)
    directory = RunDirectory(open_store(result.run_dir))
    latest = directory.latest()
    assert latest is not None, "the job has stored what it came to"
    assert latest.manifest is not None
    course = latest.manifest.counters["course"]
    over = result.status == "done"
    _take(model, f"{result.run_dir}/{latest.directory}", result.step, course, asked, per_epoch, over=over)
    history = _tell(model, directory, course["ended"], told, {"epochs": epochs, "steps": per_epoch})
    history.result = result
    return history


def _same(value: T) -> T:
    return value


def _take(
    model: Model,
    url: str,
    step: int,
    course: Mapping[str, Any],
    asked: Sequence[Callback],
    steps_per_epoch: int,
    *,
    over: bool,
) -> None:
    """In place. Give the model, its optimizer and its callbacks the state that a checkpoint holds.

    When training is over, those are the weights of the best epoch, if a callback has had them kept, or else
    their averages, if the optimizer has some.
    """
    import storage
    from storage.strict_json import unspelled
    from workers.nn.callbacks.base import CallbackList
    from workers.nn.callbacks.jobs import keeps_best
    from workers.task import BEST

    arrays = storage.load(url)
    kept, source = course["kept"], "params"
    restores = over and any(map(keeps_best, asked)) and kept is not None
    if restores and (kept + 1) * steps_per_epoch < step:
        source = BEST
    for path, variable in model.named_variables().items():
        variable.assign(arrays[f"{source}/{path}"])
    optimizer, trained = model.optimizer, model.trainable_weights
    optimizer.build(trained)
    for slot, variables in optimizer.slot_variables.items():
        for target, state in zip(trained, variables, strict=True):
            state.assign(arrays[f"slots/{slot}/{target.path}"])
    optimizer.steps = step
    if over and not restores:
        optimizer.finalize_variable_values(trained)
    if "learning_rate" in course["knobs"]:
        optimizer.learning_rate = unspelled(course["knobs"]["learning_rate"])
    model.stop_training = course["stopped"]
    CallbackList(asked, model, {}).set_state(course["state"])


def _tell(
    model: Model, run: RunDirectory, ended: int, told: Sequence[Callback], params: Mapping[str, Any]
) -> History:
    """Tell those who write down what happened, from the run's journals."""
    from storage.strict_json import unspelled
    from workers.nn.callbacks import CallbackList, History

    epochs: dict[int, dict[str, float]] = {}
    for entry in run.journal():
        if entry.get("kind") == "epoch-end" and entry["number"] < ended:
            epochs[entry["number"]] = unspelled(entry["logs"])
    if len(epochs) < ended:
        lost = sorted({*range(ended)} - {*epochs})
        warnings.warn(
            f"the records of {len(lost)} epochs (the first: {lost[0] + 1}) were lost with the processes that "
            "held them: the history lacks them; the weights lack nothing",
            stacklevel=3,
        )
    history = History()
    observers = CallbackList([*(each for each in told if each.observes), history], model, params)
    observers.tell("on_train_begin", None)
    for epoch, logs in sorted(epochs.items()):
        observers.tell("on_epoch_begin", epoch, None)
        observers.tell("on_epoch_end", epoch, logs)
    observers.tell("on_train_end", epochs.get(ended - 1))
    return history
