"""What is secret is neither raised nor shown, and parameters can stand for it."""

from __future__ import annotations

import errno
import traceback
from typing import Any

import pytest

from orchestrator.arguments import parameters_of
from orchestrator.discretion import Discreet, discretion, resolved, variables_of
from orchestrator.events import Note
from orchestrator.identity import check_identity, check_names, full_identity
from orchestrator.jobs import convert
from orchestrator.spec import Job
from storage.errors import ConfigurationError, StorageError
from storage.layout import Layout, StateArray
from storage.store import open_store
from workers.redaction import HIDDEN, Redactor
from workers.reports import mean

CANARY = "canary-77-4711"


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", CANARY)


class Talkative(Exception):
    """Says what it was given whatever its arguments are made to be."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._inner = (text,)

    def __str__(self) -> str:
        return self._inner[0]


def raise_all(last: Exception) -> None:
    try:
        try:
            raise OSError(errno.EACCES, f"no {CANARY}", f"/tmp/{CANARY}")  # noqa: TRY301
        except OSError as error:
            error.add_note(f"a note of {CANARY}")
            raise KeyError(f"https://me:{CANARY}@host") from error
    except KeyError:
        raise last  # noqa: B904 the other is its context


@pytest.mark.parametrize("kind", [StorageError, ConfigurationError, RuntimeError, Talkative])
def test_an_exception_and_all_that_it_came_of_say_nothing_secret(kind: type[Exception]) -> None:
    with pytest.raises(Exception, match=r"refused \*\*\*$") as caught, discretion():
        raise_all(kind(f"refused {CANARY}"))
    shown = "".join(traceback.format_exception(caught.value))
    assert CANARY not in shown
    assert type(caught.value) is (RuntimeError if kind is Talkative else kind)
    if kind is StorageError:  # the causes are still there to be read
        assert "no ***: '/tmp/***'" in shown
        assert "a note of ***" in shown


def test_one_that_says_nothing_secret_stays_as_it_is() -> None:
    error = StorageError("s3://bucket/run does not answer")
    with pytest.raises(StorageError) as caught, discretion():
        raise error
    assert caught.value is error
    assert error.args == ("s3://bucket/run does not answer",)


def test_exceptions_of_a_group_say_nothing_secret() -> None:
    with pytest.raises(ExceptionGroup) as caught, discretion():
        raise ExceptionGroup("several", [ValueError(CANARY), StorageError(f"a {CANARY}")])
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_an_observer_is_told_nothing_secret() -> None:
    notes: list[Note] = []

    class Observer:
        draws = False

        def note(self, note: Note) -> None:
            notes.append(note)

        def progress(self, snapshot: Any) -> None: ...

    Discreet(Observer(), Redactor([CANARY])).note(Note("storage", f"no {CANARY}", {"url": f"a{CANARY}"}))
    assert notes == [Note("storage", f"no {HIDDEN}", {"url": f"a{HIDDEN}"})]


@pytest.mark.parametrize(
    "setting",
    [
        "api_key=abcdef",  # by its name
        "db_PASSWORD=secret-or-not",
        f"url=https://host/{CANARY}/x",  # by what it holds
        "data=https://me:pass@host/x",
        f"a-name={CANARY}",
    ],
)
def test_a_secret_parameter_is_refused_without_being_said(setting: str) -> None:
    name, _, value = setting.partition("=")
    with pytest.raises(ConfigurationError, match=r"^--set [\w-]+=\.\.\.: ") as caught:
        parameters_of([setting])
    assert name in str(caught.value)
    assert value not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_parameters_are_taken_and_one_can_stand_for_a_secret() -> None:
    given = ["api_key=env:MY_TOKEN", "pad_token=0", "rate=0.1", "sort_key=a", "note=env:no reference"]
    parameters = parameters_of(given)
    assert parameters == dict(setting.split("=", 1) for setting in given)
    assert variables_of(parameters) == ["MY_TOKEN"]
    assert resolved("api_key", "env:MY_TOKEN") == CANARY

    def job(api_key: str, rate: float) -> None: ...

    assert convert(job, {"api_key": "env:MY_TOKEN", "rate": "0.1"}, "f") == {"api_key": CANARY, "rate": 0.1}
    with pytest.raises(ConfigurationError, match="--set rate=env:MY_TOKEN: f takes") as caught:
        convert(job, {"api_key": "x", "rate": "env:MY_TOKEN"}, "f")
    assert CANARY not in str(caught.value)
    with pytest.raises(ConfigurationError, match="the environment has no variable GONE_TOKEN"):
        convert(job, {"api_key": "env:GONE_TOKEN", "rate": "1"}, "f")


def description(name: str = "w", metric: str = "loss", **data: str) -> dict[str, Any]:
    return {
        "arrays": [StateArray("params", Layout.of({name: (3,)})).to_json()],
        "metrics": [mean(metric)],
        "data": {"kind": "mine", **data},
        "engine": {"kind": "mine"},
        "optimizer": {},
        "callbacks": [],
    }


def a_job() -> Job:
    return Job(model=object, data=object, batch_size=4, steps=1)


def test_names_that_are_secret_are_refused() -> None:
    redactor = Redactor([CANARY])
    check_names(description(), redactor)
    for bad in (description(name=f"layer/{CANARY}"), description(metric=CANARY)):
        with pytest.raises(
            ConfigurationError, match=r"the name of the (variable|metric) '.*\*\*\*'"
        ) as caught:
            check_names(bad, redactor)
        assert CANARY not in str(caught.value)


def test_run_json_holds_no_secret_and_a_new_secret_is_no_other_job() -> None:
    told = description(**{"url": f"https://host/{CANARY}", f"of {CANARY}": "x"})
    stored = full_identity(a_job(), 2, told, Redactor([CANARY]))
    assert stored["data"] == {"kind": "mine", "url": f"https://host/{HIDDEN}", f"of {HIDDEN}": "x"}
    rotated = description(**{"url": "https://host/other-9", "of other-9": "x"})
    ours = full_identity(a_job(), 2, rotated, Redactor(["other-9"]))
    assert check_identity(stored, ours, "run", Redactor(["other-9"])) == []
    with pytest.raises(ConfigurationError, match="belongs to another job: data"):
        check_identity(
            stored, full_identity(a_job(), 2, description(), Redactor()), "run", Redactor([CANARY])
        )


def test_a_secret_that_is_also_the_name_of_an_array_breaks_nothing() -> None:
    stored = full_identity(a_job(), 2, description(), Redactor(["params"]))
    assert StateArray.from_json(stored["arrays"][0]).name == "params"


@pytest.mark.parametrize("scheme", ["s3", "ftp", "sftp"])
def test_a_url_with_a_password_is_refused_without_it(scheme: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"^{scheme}://\.\.\.@host: .*must hold no password"
    ) as caught:
        open_store(f"{scheme}://me:open@sesame@host/runs/one")
    assert "open" not in str(caught.value)
    assert "sesame" not in str(caught.value)
