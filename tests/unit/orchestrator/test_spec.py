"""Settings are checked where they are written, with a message that says what to write instead."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest

from orchestrator.execution import Request
from orchestrator.identity import FIXED, check_is_training, check_settings, settings_identity
from orchestrator.life import check_beat, own_life
from orchestrator.result import Result, finite
from orchestrator.spec import (
    Checkpoints,
    Job,
    RestartPolicy,
    check_microbatches,
    check_remainder,
    check_workers,
)
from orchestrator.totals import Totals
from storage.errors import ConfigurationError, CorruptCheckpoint, IdentityMismatch


def make(**changes: Any) -> Job:
    settings: dict[str, Any] = {"model": dict, "data": list, "batch_size": 32, "steps": 10}
    return Job(**settings | changes)


@pytest.mark.parametrize("name", ["batch_size", "steps", "microbatches", "validate_every"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, "3", True, math.nan])
def test_counts_of_a_job_are_whole_positive_numbers(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"Job\({name}=.*at least 1"):
        make(**{name: value})


@pytest.mark.parametrize("seed", [-1, 2**64, 0.0, "x", None, False])
def test_a_seed_is_a_whole_number_of_64_bits(seed: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Job\(seed="):
        make(seed=seed)


@pytest.mark.parametrize("value", [0, -1.0, "3", True, math.nan, math.inf])
def test_a_time_out_is_a_positive_number_of_seconds(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Job\(worker_timeout_s=.*seconds above 0"):
        make(worker_timeout_s=value)
    with pytest.raises(ConfigurationError, match=r"Checkpoints\(timeout_s=.*seconds above 0"):
        Checkpoints(timeout_s=value)


def test_the_limits_themselves_are_fine() -> None:
    job = make(seed=2**64 - 1, batch_size=1, steps=1, microbatches=1, validate_every=1)
    assert job.seed == 2**64 - 1
    assert make(microbatches=None, validate_every=None).microbatches is None
    assert make(batch_size=4, microbatches=4).microbatches == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": 3}, r"model=.*function.*int"),
        ({"data": "x"}, r"data=.*function.*str"),
        ({"validation": []}, r"validation=.*function.*list"),
        ({"checkpoints": 5}, r"Checkpoints\("),
        ({"restart": None}, r"RestartPolicy\("),
        ({"determinism": "loose"}, r"'strict' or 'warn'"),
        ({"on_divergence": "go"}, r"'stop' or 'ignore'"),
        ({"batch_size": 3, "microbatches": 4}, r"3 samples.*4 microbatches.*at least 4"),
    ],
)
def test_what_cannot_be_a_job_is_refused_saying_what_to_write(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make(**changes)


def test_the_remainder_is_kept_dropped_or_padded() -> None:
    with pytest.raises(ConfigurationError, match=r"remainder='fill'.*'keep', 'drop' or 'pad'"):
        make(remainder="fill")


def test_dropping_must_leave_a_batch() -> None:
    check_remainder(make(remainder="drop"), make().batch_size)
    for remainder in ("keep", "pad"):
        check_remainder(make(remainder=remainder), 1)
    with pytest.raises(ConfigurationError, match=r"the 3 samples .* leaves none: give a smaller batch_size"):
        check_remainder(make(remainder="drop"), 3)


def test_shuffle_is_true_or_false() -> None:
    """It is part of the identity, and "no" would shuffle."""
    with pytest.raises(ConfigurationError, match="shuffle"):
        make(shuffle="no")


def test_a_whole_number_of_numpy_is_refused_showing_that_it_is_one() -> None:
    with pytest.raises(ConfigurationError, match="int64"):
        make(batch_size=np.int64(32))


@pytest.mark.parametrize("kind", [Checkpoints, RestartPolicy])
def test_every_setting_refuses_nonsense_by_name(kind: Any) -> None:
    for field in dataclasses.fields(kind):
        values: list[Any] = [-1, math.nan, "", [], True]
        if field.name != "best_metric":
            values.append("1")
        for value in values:
            with pytest.raises(ConfigurationError, match=f"{kind.__name__}.{field.name}="):
                kind(**{field.name: value})


def test_at_least_one_shard_is_in_flight() -> None:
    assert Checkpoints(in_flight=1).in_flight == 1
    for value in (0, None, 1.5):
        with pytest.raises(ConfigurationError, match=rf"Checkpoints\(in_flight={value}\).*at least 1"):
            Checkpoints(in_flight=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["backoff_s", "max_backoff_s"])
def test_a_wait_without_end_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        RestartPolicy(**{name: math.inf})  # type: ignore[arg-type]


def test_settings_are_frozen_and_given_by_name() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().steps = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Checkpoints(5)  # type: ignore[call-arg]
    assert pickle.loads(pickle.dumps(make())) == make()


@pytest.mark.parametrize(("workers", "microbatches"), [(0, 4), (-3, 4), (5, 4)])
def test_workers_are_between_one_and_the_microbatches(workers: int, microbatches: int) -> None:
    with pytest.raises(ConfigurationError, match=str(abs(workers))):
        check_workers(workers, microbatches)
    check_workers(4, 4)
    check_workers(1, 4)
    check_microbatches(4, 4)


@pytest.mark.parametrize("workers", [2.5, "2", None, True])
def test_a_number_of_workers_is_a_whole_number(workers: Any) -> None:
    with pytest.raises(ConfigurationError, match="workers"):
        check_workers(workers, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"runtime": "mpi"},
        {"standby": -1},
        {"standby": 0.5},
        {"cpus_per_worker": -1},
        {"cpus_per_worker": math.nan},
    ],
)
def test_a_request_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"job": make(), "source": b"", "run_dir": "x", "workers": 1}
    with pytest.raises(ConfigurationError, match=str(next(iter(changes.values())))):
        Request(**settings | changes)


# -- identity --------------------------------------------------------------------------------------------


def test_the_same_settings_are_the_same_run_and_give_its_microbatches() -> None:
    identity = json.loads(json.dumps(settings_identity(make(seed=2**64 - 1), 4)))
    assert check_settings(identity, make(seed=2**64 - 1, steps=99), "url") == 4
    assert check_settings(identity, make(seed=2**64 - 1, microbatches=4), "url") == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 8), ("batch_size", 33), ("microbatches", 5), ("shuffle", False), ("remainder", "pad")],
)
def test_every_setting_that_decides_bits_is_compared_and_named(name: str, value: Any) -> None:
    identity = settings_identity(make(), 4)
    with pytest.raises(IdentityMismatch, match=rf"s3://b/run.*{name} is {identity[name]}.*{value} here"):
        check_settings(identity, make(**{name: value}), "s3://b/run")
    assert name in FIXED


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"seed": ...}, "it has no seed"),
        ({"kind": "arrays", "model": ...}, "it has no model"),
        ({"microbatches": "4"}, "microbatches or arrays"),
        ({"arrays": 5}, "microbatches or arrays"),
        ({"arrays": [{"name": "../x"}]}, "state array: missing"),
    ],
)
def test_a_run_json_that_is_of_no_training_run_is_refused(changes: dict[str, Any], fault: str) -> None:
    identity = {**settings_identity(make(), 4), "arrays": [], "data": {}, "model": {}, "optimizer": {}}
    check_is_training(identity, "s3://b/run")
    changed = {name: value for name, value in {**identity, **changes}.items() if value is not ...}
    with pytest.raises(ConfigurationError, match=rf"s3://b/run/run\.json is not that of a.*{fault}"):
        check_is_training(changed, "s3://b/run")


@pytest.mark.parametrize(
    "changes",
    [{"closed": ...}, {"closed": "yes"}, {"pid": "1"}, {"totals": {}}, {"totals": None}, {"metrics": []}],
)
def test_a_sign_of_life_that_says_something_else_is_a_named_error(changes: dict[str, Any]) -> None:
    beat = {**own_life(), "attempt": 1, "nonce": "0" * 16, "counter": 1, "closed": True, "status": "done"}
    beat |= {"error": None, "step": 1, "trained": True, "steps": 1, "metrics": {}, "steps_per_s": None}
    beat |= {"workers": 1, "totals": Totals().to_json(), "state_digest": None}
    check_beat(beat, "url")
    with pytest.raises(CorruptCheckpoint, match=f"url/attempts: .*{next(iter(changes))}"):
        check_beat({name: x for name, x in {**beat, **changes}.items() if x is not ...}, "url")
    with pytest.raises(CorruptCheckpoint, match="budgeted is not a list of steps"):
        check_beat({**beat, "totals": {**Totals().to_json(), "budgeted": ["x"]}}, "url")


# -- results ---------------------------------------------------------------------------------------------


def test_a_result_is_json_whatever_its_numbers_are() -> None:
    result = Result(
        run_dir="u", status="failed", loss=math.nan, metrics={"a": math.inf, "b": 0.5}, steps_per_s=1.0
    )
    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (value["loss"], value["metrics"]) == (None, {"a": None, "b": 0.5})
    assert [finite(number) for number in (None, -math.inf, 0.0)] == [None, None, 0.0]
