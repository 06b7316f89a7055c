"""Finding a user's job: a file, a shipped example, or an object; and shipping it to the workers."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import sys
import typing
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import PurePath
from types import ModuleType, UnionType
from typing import Any

import cloudpickle

from orchestrator.discretion import resolved
from orchestrator.examples import EXAMPLES
from orchestrator.spec import Job
from storage.errors import ConfigurationError, UserCodeError
from workers.task import shipped
from workers.tracebacks import summary, user_traceback

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class JobSource:
    """Where a job is found: a file, the name in it, and values for its parameters, as text."""

    path: str
    name: str = "job"
    settings: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, target: str, settings: Mapping[str, str]) -> JobSource:
        """The source of `FILE[:NAME]` or of a shipped example's name. Raises ConfigurationError."""
        if target in EXAMPLES:
            spec = importlib.util.find_spec(f"orchestrator.examples.{target}")
            assert spec is not None
            assert spec.origin is not None
            return cls(spec.origin, "job", tuple(settings.items()))
        path, colon, name = target.rpartition(":")
        if not colon or "/" in name or os.path.isfile(target):
            path, name = target, "job"
        if os.path.isfile(path):
            return cls(os.path.abspath(path), name, tuple(settings.items()))
        if path.endswith(".py") or "/" in path:
            raise ConfigurationError(f"there is no file {path}")
        raise ConfigurationError(
            f"there is no example {target!r} and no file of that name: the examples are {', '.join(EXAMPLES)}"
        )

    def load(self) -> Job:
        """Run the file and return its job. Raises ConfigurationError or UserCodeError."""
        module = _run_file(self.path)
        try:
            found = getattr(module, self.name)
        except AttributeError:
            raise ConfigurationError(
                f"{self.path} defines no {self.name!r}: let it hold a Job, or a function that returns one, "
                "of that name, or give FILE:NAME"
            ) from None
        where = f"{self.path}:{self.name}"
        if isinstance(found, Job):
            if self.settings:
                name = self.settings[0][0]
                raise ConfigurationError(
                    f"{where} is a Job, which takes no --set {name}: make it a function with parameters that "
                    f"returns one{_hint(name)}"
                )
            return found
        if not callable(found):
            raise ConfigurationError(
                f"{where} is {type(found).__name__}, not a Job or a function that returns one"
            )
        arguments = convert(found, dict(self.settings), where)
        job = _call_user(functools.partial(found, **arguments), where)
        if not isinstance(job, Job):
            raise ConfigurationError(f"{where}() returned {type(job).__name__}, not a Job")
        return job


def by_file(source: JobSource) -> bytes:
    """A job in a file, to be loaded anew on every worker."""
    return shipped(cloudpickle.dumps(source.load), [os.path.dirname(source.path), *sys.path])


def by_value(job: Job) -> bytes:
    """A job made in a script or a notebook, with the functions that it holds."""
    try:
        return shipped(cloudpickle.dumps(functools.partial(_same, replace(job))), sys.path)
    except Exception as error:
        raise ConfigurationError(
            f"the job cannot be sent to workers: {error}; let its model and data functions make what they "
            "need instead of holding it"
        ) from error


def _same(job: Job) -> Job:
    return job


def convert(function: Callable[..., Any], settings: Mapping[str, str], where: str) -> dict[str, Any]:
    """Values for a job function's parameters, converted by their annotations. Raises ConfigurationError."""
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{where} cannot be called with settings: {error}") from error
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {name: parameter for name, parameter in parameters.items() if parameter.kind not in variadic}
    try:
        # A partial has no annotations of its own.
        hints = typing.get_type_hints(function.func if isinstance(function, functools.partial) else function)
    except (NameError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"{where}: an annotation cannot be read: {error}") from error
    values = {}
    for name, text in settings.items():
        if name not in named:
            known = ", ".join(named) or "none"
            raise ConfigurationError(
                f"{where} has no parameter {name!r} for --set: it has {known}{_hint(name)}"
            )
        default = named[name].default
        hint = hints.get(name, str if default in (None, inspect.Parameter.empty) else type(default))
        given = resolved(name, text)
        try:
            values[name] = _converted(hint, given)
        except ValueError:
            raise ConfigurationError(f"--set {name}={text}: {where} takes {_named(hint)} there") from None
    missing = [
        name
        for name, parameter in named.items()
        if parameter.default is inspect.Parameter.empty and name not in values
    ]
    if missing:
        raise ConfigurationError(f"{where} needs a value for {missing[0]}: give --set {missing[0]}=VALUE")
    return values


def _hint(name: str) -> str:
    return f"; --{name} N is there for every job" if name in ("steps", "seed") else ""


_WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _named(hint: Any) -> str:
    """A type, as users are told of it."""
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(str(value) for value in typing.get_args(hint))
    return f"a value of type {getattr(hint, '__name__', str(hint))}"


def _converted(hint: Any, text: str) -> Any:
    if typing.get_origin(hint) in (UnionType, typing.Union):
        kinds = typing.get_args(hint)
        if type(None) in kinds and text.lower() in ("none", ""):
            return None
        for kind in kinds:
            if kind is not type(None):
                try:
                    return _converted(kind, text)
                except ValueError:
                    continue
        raise ValueError(text)
    if hint is bool:
        if text.lower() not in _WORDS:
            raise ValueError(text)
        return _WORDS[text.lower()]
    if typing.get_origin(hint) is typing.Literal:
        for value in typing.get_args(hint):
            if str(value) == text:
                return value
        raise ValueError(text)
    if hint in (int, float):
        return hint(text)
    if hint in (str, Any):
        return text
    if isinstance(hint, type) and issubclass(hint, PurePath):
        return hint(text)
    if isinstance(hint, type) and issubclass(hint, Enum):
        by_name = {member.name: member for member in hint} | {str(member.value): member for member in hint}
        if text in by_name:
            return by_name[text]
    raise ValueError(text)


def _run_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("holdfast_job", path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["holdfast_job"] = module  # dataclasses and pickle look a class's module up
    folder = os.path.dirname(path)
    if folder not in sys.path:
        sys.path.append(folder)
    _call_user(functools.partial(spec.loader.exec_module, module), path)
    return module


def _call_user(call: Callable[[], Any], where: str) -> Any:
    """Call the user's code; what it raises becomes a UserCodeError that starts with its traceback."""
    try:
        return call()
    except (ConfigurationError, UserCodeError):
        raise
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{user_traceback(error)}{where} raised {summary(error)}") from error
