"""A job is found, its settings are converted as annotated, and it is shipped to the workers."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any, Literal, Optional

import pytest

from orchestrator.examples import EXAMPLES
from orchestrator.jobs import JobSource, by_file, by_value, convert
from orchestrator.spec import Job
from storage.errors import ConfigurationError, UserCodeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JOB = """
from orchestrator import Job

def job(batch: int = 8, name: str = "x"):
    return Job(model=lambda: name, data=list, batch_size=batch, steps=5)

constant = job(16)
number = 3
"""


def settings_of(  # type: ignore[no-untyped-def]
    i: int = 1,
    f: float = 0.5,
    b: bool = False,
    s: str = "x",
    oi: int | None = None,
    of: Optional[float] = 1.0,  # noqa: UP045 users write both
    ob: bool | None = True,
    lit: Literal["adam", "sgd"] = "adam",
    num: Literal[1, 2] = 1,
    both: int | str = 0,
    anything: Any = None,
    plain_int=3,
    plain_bool=True,
    plain_float=0.1,
    plain_none=None,
    lst: list[int] | None = None,
) -> None:
    """Every kind of parameter that --set must deal with."""


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("i", "7", 7),
        ("i", "-7", -7),
        ("f", "1e-3", 1e-3),
        ("f", "3", 3.0),
        ("b", "true", True),
        ("b", "No", False),
        ("b", "1", True),
        ("b", "off", False),
        ("s", "", ""),
        ("s", "none", "none"),
        ("s", "a=b", "a=b"),
        ("oi", "4", 4),
        ("oi", "none", None),
        ("oi", "None", None),
        ("of", "0.25", 0.25),
        ("of", "none", None),
        ("ob", "false", False),
        ("ob", "none", None),
        ("lit", "sgd", "sgd"),
        ("num", "2", 2),
        ("both", "5", 5),
        ("both", "five", "five"),
        ("anything", "12", "12"),
        ("plain_int", "9", 9),
        ("plain_bool", "no", False),
        ("plain_float", "2", 2.0),
        ("plain_none", "text", "text"),
    ],
)
def test_a_setting_is_converted_as_its_parameter_is_annotated(name: str, text: str, value: Any) -> None:
    found = convert(settings_of, {name: text}, "train.py:job")[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("i", "1.5"),
        ("i", ""),
        ("i", "1e3"),
        ("f", "fast"),
        ("b", "maybe"),
        ("b", ""),
        ("oi", "x"),
        ("lit", "rmsprop"),
        ("num", "3"),
        ("plain_bool", "2"),
        ("lst", "1,2"),
    ],
)
def test_a_setting_that_cannot_be_converted_is_named_with_its_value(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        convert(settings_of, {name: text}, "train.py:job")
    assert f"--set {name}={text}" in str(caught.value)
    assert "train.py:job" in str(caught.value)


def test_a_choice_that_does_not_exist_is_told_the_choices() -> None:
    with pytest.raises(ConfigurationError, match=r"adam.*sgd"):
        convert(settings_of, {"lit": "rmsprop"}, "train.py:job")


def test_an_unknown_setting_is_told_the_known_ones_and_a_missing_one_is_asked_for() -> None:
    def job(data: str, steps: int = 3) -> None: ...

    with pytest.raises(ConfigurationError, match=r"'stesp'.*data, steps"):
        convert(job, {"stesp": "3"}, "train.py:job")
    with pytest.raises(ConfigurationError, match="--set data=VALUE"):
        convert(job, {"steps": "3"}, "train.py:job")
    with pytest.raises(ConfigurationError, match="none"):
        convert(lambda: None, {"x": "3"}, "train.py:job")


def test_settings_are_not_given_to_collecting_parameters_by_their_names() -> None:
    def job(*args: int, steps: int = 3, **kwargs: int) -> None: ...

    assert convert(job, {"steps": "4"}, "train.py:job") == {"steps": 4}
    for name in ("args", "kwargs"):
        with pytest.raises(ConfigurationError, match=name):
            convert(job, {name: "3"}, "train.py:job")


def unreadable(x: nonesuch.Type = 1) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def attribute(x: functools.Nonesuch = 1) -> None: ...  # type: ignore[name-defined]


@pytest.mark.parametrize("function", [unreadable, attribute])
def test_an_annotation_that_cannot_be_read_is_one_clear_error(function: Callable[..., None]) -> None:
    with pytest.raises(ConfigurationError, match=r"train\.py:job.*annotation"):
        convert(function, {"x": "1"}, "train.py:job")


def test_a_partial_function_is_a_function_too() -> None:
    def job(hidden: int, steps: int = 3) -> None: ...

    assert convert(functools.partial(job, 5), {"steps": "4"}, "train.py:job") == {"steps": 4}


# -- files -----------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(JOB)
    return path


def test_a_job_is_found_by_file_and_name(file: Path) -> None:
    assert JobSource.parse(str(file), {}).load().batch_size == 8
    assert JobSource.parse(f"{file}:constant", {}).load().batch_size == 16
    assert JobSource.parse(f"{file}:job", {"batch": "24"}).load().batch_size == 24
    assert JobSource.parse(f"{file}:job", {"name": "y"}).load().model() == "y"


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        ("{file}:nothere", {}, r"train\.py defines no 'nothere'.*FILE:NAME"),
        ("{file}:number", {}, r"train\.py:number is int"),
        ("{file}:constant", {"batch": "3"}, r"train\.py:constant is a Job.*--set batch"),
        ("{file}:", {}, r"train\.py"),
        ("{file}x", {}, r"no file .*train\.pyx"),
        ("{folder}", {}, r"no file|no Python file"),
        ("nonesuch", {}, r"no example 'nonesuch'.*digits"),
        ("{file}", {"batch": "0"}, r"Job\(batch_size=0\)"),
    ],
)
def test_what_is_no_job_is_refused_saying_why(
    file: Path, target: str, settings: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        JobSource.parse(target.format(file=file, folder=file.parent), settings).load()


def test_what_the_file_raises_is_shown_from_its_own_line_on(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def job():\n    return 1 / 0\n")
    with pytest.raises(UserCodeError) as caught:
        JobSource.parse(str(path), {}).load()
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("Traceback")
    assert "broken.py" in rest[0]
    assert "orchestrator" not in rest[0]
    assert any(line.startswith("ZeroDivisionError") for line in rest)
    path.write_text("def job(:\n")
    with pytest.raises(UserCodeError, match="SyntaxError"):
        JobSource.parse(str(path), {}).load()


def test_a_file_that_ends_the_program_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "exits.py"
    path.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises((UserCodeError, ConfigurationError), match=r"exits\.py"):
        JobSource.parse(str(path), {}).load()


def test_a_file_imports_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it_xyz.py").write_text("BATCH = 12\n")
    path = tmp_path / "train.py"
    path.write_text(JOB.replace("batch: int = 8", "batch: int = BATCH") + "\n")
    path.write_text("from beside_it_xyz import BATCH\n" + path.read_text())
    assert JobSource.parse(str(path), {}).load().batch_size == 12


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_shipped_examples_are_found_by_their_names(name: str) -> None:
    source = JobSource.parse(name, {})
    assert source.path.endswith(f"{name}.py")


# -- shipping --------------------------------------------------------------------------------------------

LOAD = """
import pickle, sys
paths, loader = pickle.loads(sys.stdin.buffer.read())
sys.path.extend(path for path in paths if path not in sys.path)
job = pickle.loads(loader)()
print(type(job).__name__, job.batch_size, job.model())
"""


def elsewhere(source: bytes) -> str:
    """What another process, in another directory, makes of a shipped job."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOAD],
        input=source,
        capture_output=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_a_job_in_a_file_is_loaded_anew_elsewhere_with_its_settings(file: Path) -> None:
    source = JobSource.parse(str(file), {"batch": "40", "name": "from a file"})
    assert elsewhere(by_file(source)) == "Job 40 from a file"


def test_closures_local_classes_and_lambdas_travel_by_value() -> None:
    """Defined in __main__, as in a notebook: no other process can import them."""
    program = """
        import sys
        from orchestrator import Job
        from orchestrator.jobs import by_value

        FACTOR = 3

        class Model:
            def value(self):
                return helper(FACTOR)

        def helper(n):
            return n * 14

        def make(extra):
            return Job(model=lambda: Model().value() + extra, data=list, batch_size=4, steps=1)

        sys.stdout.buffer.write(by_value(make(0)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert elsewhere(done.stdout) == "Job 4 42"


def test_what_cannot_travel_is_refused_saying_what_to_do() -> None:
    lock = threading.Lock()
    job = Job(model=lambda: lock, data=list, batch_size=4, steps=1)
    with pytest.raises(ConfigurationError, match=r"cannot be sent.*lock.*instead of holding it"):
        by_value(job)


def test_shipping_leaves_the_job_as_it_was() -> None:
    job = Job(model=lambda: 5, data=list, batch_size=4, steps=1)
    _, loader = pickle.loads(by_value(job))
    copy = pickle.loads(loader)()
    assert copy is not job
    assert [getattr(copy, f.name) for f in dataclasses.fields(Job) if f.name in ("batch_size", "seed")] == [
        4,
        0,
    ]
    assert copy.model() == 5
