"""What makes a run the same run: written once into run.json, compared on every start. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError, IdentityMismatch
from storage.layout import StateArray
from storage.strict_json import canonical, parse
from workers.reports import value_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from orchestrator.spec import Job
    from workers.redaction import Redactor

FIXED = ("seed", "batch_size", "microbatches", "shuffle", "remainder")
"""Settings of a job that decide the bits and are known before any worker is started."""


def settings_identity(job: Job, microbatches: int) -> dict[str, Any]:
    """The part of the identity that the job itself states."""
    return {name: microbatches if name == "microbatches" else getattr(job, name) for name in FIXED}


_STANDS = "{} is {} there and {} here"
_SHOWN, _LONGEST = 3, 100
"""Differences that are told, and the characters of each side."""

TOLD = ("data", "model", "optimizer", "callbacks")
"""What the job's own code says of itself: what is secret in there is hidden."""


def full_identity(
    job: Job, microbatches: int, description: Mapping[str, Any], redactor: Redactor
) -> dict[str, Any]:
    """The whole identity, with what a worker found the job's model and data to be, secrets hidden."""
    arrays = [StateArray.from_json(array) for array in description["arrays"]]
    identity = {
        **settings_identity(job, microbatches),
        "arrays": [array.to_json() for array in arrays],
        "layout_fingerprint": arrays[0].layout.fingerprint,
        "data": description["data"],
        "metrics": description["metrics"],
        "model": description["engine"],
        "optimizer": description["optimizer"],
        "callbacks": description["callbacks"],
    }
    spelled: dict[str, Any] = parse(canonical(identity))  # as it will be read back
    return _hidden(spelled, redactor)


def _hidden(identity: Mapping[str, Any], redactor: Redactor) -> dict[str, Any]:
    return {k: redactor.value(each, keys=True) if k in TOLD else each for k, each in identity.items()}


def check_names(description: Mapping[str, Any], redactor: Redactor) -> None:
    """Refuse a name that is secret: what variables and metrics are called tells them apart wherever they are
    stored and shown, so it cannot be hidden. Raises ConfigurationError.
    """
    variables = [
        each["name"] for array in description["arrays"] for each in array["layout"].get("variables", ())
    ]
    named = {"variable": variables, "metric": value_names(description["metrics"])}
    for kind, names in named.items():
        for name in names:
            if redactor.hides(name):
                raise ConfigurationError(
                    f"the name of the {kind} {redactor.text(name)!r} holds something secret of the "
                    "environment, and names are stored and shown: name it otherwise"
                )


def check_best(job: Job, description: Mapping[str, Any]) -> None:
    """Raise ConfigurationError if the best checkpoints are to be kept by a metric that the job has not."""
    names = value_names(description["metrics"])
    if job.validation is not None:
        names += value_names(description["metrics"], "val_")
    best = job.checkpoints.best_metric
    if job.checkpoints.keep_best is not None and best not in names:
        raise ConfigurationError(
            f"Checkpoints(best_metric={best!r}): give a metric of the job's, of {', '.join(names)}"
        )


def check_is_training(identity: Mapping[str, Any], url: str) -> None:
    """Refuse a directory whose run.json, which may come from anyone, is not that of a training run."""
    try:
        for name in (*FIXED, "data", "model", "optimizer"):
            if name not in identity:
                raise ValueError(f"it has no {name}")  # noqa: TRY301
        if type(identity["microbatches"]) is not int or not isinstance(identity.get("arrays"), list):
            raise ValueError("microbatches or arrays are not what they should be")  # noqa: TRY301
        for array in identity["arrays"]:
            StateArray.from_json(array)
    except ValueError as exc:
        raise ConfigurationError(
            f"{url}/run.json is not that of a training run: {exc}: give another directory"
        ) from exc


def check_settings(identity: Mapping[str, Any], job: Job, url: str) -> int:
    """Refuse a job whose fixed settings differ from the run's; returns the run's number of microbatches."""
    for name in FIXED:
        here = getattr(job, name)
        if name == "microbatches" and here is None:
            continue
        if identity[name] != here:
            raise _differs(url, _STANDS.format(name, identity[name], here))
    microbatches: int = identity["microbatches"]
    return microbatches


def check_identity(
    identity: Mapping[str, Any], ours: Mapping[str, Any], url: str, redactor: Redactor
) -> list[str]:
    """Refuse another layout or other data than the run's.

    Returns what else differs, in words: settings of model and optimizer, which are recorded but may change.
    """
    identity = _hidden(identity, redactor)  # as ours is
    check_arrays(identity, [StateArray.from_json(array) for array in ours["arrays"]], url)
    if identity["data"] != ours["data"]:
        raise _differs(url, _in_words(_STANDS, "data", identity["data"], ours["data"]))
    if identity.get("callbacks") != ours["callbacks"]:
        there, here = (each.get("callbacks") for each in (identity, ours))
        raise _differs(url, _in_words(_STANDS, "callbacks", there, here))
    return [
        _in_words("{} was {} and is now {}", name, identity[name], ours[name])
        for name in ("model", "optimizer")
        if identity[name] != ours[name]
    ]


def check_arrays(identity: Mapping[str, Any], arrays: Sequence[StateArray], url: str) -> None:
    """Refuse a model or optimizer whose state has another layout than the run's."""
    stored = {array["name"]: StateArray.from_json(array) for array in identity["arrays"]}
    here = {array.name: array for array in arrays}
    for name in here.keys() & stored.keys():
        differences = stored[name].layout.differences(here[name].layout)
        if differences:
            difference = differences[0].replace(" there", " in this job").replace(" here", " in the run")
            raise _differs(url, f"the layout of the model: {difference}")
    if stored.keys() != here.keys():
        raise _differs(url, f"the state is {', '.join(stored)} there and {', '.join(here)} here")


def _differs(url: str, what: str) -> IdentityMismatch:
    return IdentityMismatch(
        f"{url} belongs to another job: {what}; give the same settings to resume it, or another --run-dir, "
        "or remove this one to begin anew"
    )


def _in_words(sentence: str, name: str, there: object, here: object) -> str:
    """A sentence for each of the first few places in which two JSON values differ."""
    found = [*_differences(name, there, here)]
    shown = [sentence.format(path, _short(old), _short(new)) for path, old, new in found[:_SHOWN]]
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(shown) + more


def _differences(path: str, there: object, here: object) -> Iterator[tuple[str, object, object]]:
    """Each place below `path` at which two JSON values differ, with what stands there and here."""
    if isinstance(there, dict) and isinstance(here, dict):
        kind = there.get("kind")
        where = f"{path} ({kind})" if isinstance(kind, str) and kind == here.get("kind") else path
        for key in sorted(there.keys() | here.keys()):
            yield from _differences(f"{where}.{key}", there.get(key), here.get(key))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for i, (old, new) in enumerate(zip(there, here, strict=True)):
            yield from _differences(f"{path}[{i}]", old, new)
    elif there != here:
        yield path, there, here


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
