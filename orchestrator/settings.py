"""Settings of commands from a TOML file and from the environment, in the place of flags.

`holdfast.toml` lies beside the job, or is named by `--config` or HOLDFAST_CONFIG. Its keys are the names of
options of `run` and `submit`; a table `[run]` holds those of one of the two, `[set]` parameters of the job's
function:

    run-dir = "s3://bucket/runs/digits"
    workers = "2:8"

    [set]
    hidden = 512

`HOLDFAST_WORKERS` in the environment goes before the file, and a flag before both. Pure, but for `read`.
"""

from __future__ import annotations

import difflib
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

FILE = "holdfast.toml"
PREFIX = "HOLDFAST_"
CONFIG = "HOLDFAST_CONFIG"
"""An environment variable that names another file, as `--config` does."""

SET = "set"
"""The table, and the option, of the job's own parameters."""

COMMANDS = ("run", "submit")
"""Those that take settings."""

DEFAULT = "default"
_SPELLED = {"true": True, "1": True, "false": False, "0": False}
_ALIKE = 0.8
"""How near a variable's name must be to a setting's to be taken for a slip: others may be anybody's, as a
service of Kubernetes that is called holdfast makes HOLDFAST_PORT."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as it would stand behind its flag, True for a flag that takes none, and where it is from."""

    value: str | bool
    source: str


def path_of(target: str, config: str | None, source: str = "--config") -> Path | None:
    """The file of settings for a job: the one that `source` names, else `holdfast.toml` beside it, if there.

    Raises ConfigurationError if the one that is named is no file.
    """
    if config is not None:
        if not Path(config).is_file():
            what = "it is no file" if Path(config).exists() else "there is no such file"
            raise ConfigurationError(f"{source} {config}: {what}")
        return Path(config)
    file = target.partition(":")[0]
    beside = (Path(file).parent if file.endswith(".py") else Path()) / FILE
    return beside if beside.is_file() else None


def read(path: Path, command: str, keys: Mapping[str, Collection[str]]) -> dict[str, Setting]:
    """The settings of a file for a command. `keys` are what each command knows.

    Raises ConfigurationError that names file and key.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin with a byte order mark
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc}") from exc
    return of_file(text, str(path), command, keys)


def of_file(text: str, where: str, command: str, keys: Mapping[str, Collection[str]]) -> dict[str, Setting]:
    """`read`, of the text of a file."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigurationError(f"{where} is no TOML: {exc}") from exc
    every = {key for known in keys.values() for key in known}
    _check_spellings(where, document)
    shared: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for key, value in document.items():
        name = key.replace("_", "-")
        if isinstance(value, dict) and (name in keys or name == SET):
            tables[name] = value
        elif name in every:
            shared[name] = value
        else:
            raise _unknown(where, key, [*sorted(every), *(f"[{name}]" for name in (*keys, SET))])
    for name in keys.keys() & tables.keys():
        for key in tables[name]:
            if key.replace("_", "-") not in keys[name]:
                raise _unknown(f"{where}: [{name}]", key, sorted(keys[name]))
    own = {key.replace("_", "-"): value for key, value in tables.get(command, {}).items()}
    found = {key: value for key, value in (shared | own).items() if key in keys[command]}
    parameters = {f"{SET}.{name}": value for name, value in tables.get(SET, {}).items()}
    return {key: Setting(_plain(where, key, value), where) for key, value in (found | parameters).items()}


def _check_spellings(where: str, document: Mapping[str, Any]) -> None:
    """Raise ConfigurationError where one key stands twice in a table, with `-` and with `_`."""
    for name, table in {"": document, **document}.items():
        if isinstance(table, dict) and name != SET:
            for key in table:
                if "_" in key and key.replace("_", "-") in table:
                    raise ConfigurationError(f"{where}: {key} stands there with - and with _: leave one out")


def of_environment(environment: Mapping[str, str], keys: Mapping[str, bool]) -> dict[str, Setting]:
    """The settings in an environment: `HOLDFAST_RUN_DIR` and so on; `HOLDFAST_SET="hidden=64 rate=0.1"`.

    `keys` says of each whether it is a flag without a value, which is then true or false, 1 or 0. Raises
    ConfigurationError for a name that is all but that of a setting.
    """
    names = {_variable(key): key for key in (*keys, SET)}
    found: dict[str, Setting] = {}
    for name, value in environment.items():
        if name in names:
            key = names[name]
            found |= _parameters(name, value) if key == SET else {key: _of_variable(name, value, keys[key])}
        elif name.startswith(PREFIX):
            short = [each.removeprefix(PREFIX) for each in names]
            if near := _nearest(name.removeprefix(PREFIX), short, _ALIKE):
                raise ConfigurationError(
                    f"{name} in the environment is not known: did you mean {PREFIX}{near}?"
                )
    return found


def flags(found: Mapping[str, Setting]) -> list[str]:
    """Settings as the words of a command line."""
    words = []
    for key, setting in found.items():
        parameter = key.removeprefix(f"{SET}.")
        if parameter != key:
            words.append(f"--{SET}={parameter}={setting.value}")
        elif not isinstance(setting.value, bool):
            words.append(f"--{key}={setting.value}")
        elif setting.value:
            words.append(f"--{key}")
    return words


def _of_variable(name: str, value: str, is_flag: bool) -> Setting:
    if is_flag and value.lower() not in _SPELLED:
        raise ConfigurationError(f"{name}={value} in the environment: give true or false")
    return Setting(_SPELLED[value.lower()] if is_flag else value, name)


def _parameters(name: str, value: str) -> dict[str, Setting]:
    found = {}
    try:
        words = shlex.split(value)
    except ValueError as exc:
        raise ConfigurationError(f"{name} in the environment: {exc}: close what is quoted") from exc
    for word in words:
        parameter, equals, given = word.partition("=")
        if not equals:
            raise ConfigurationError(f"{name} in the environment: {word}: give NAME=VALUE")
        found[f"{SET}.{parameter}"] = Setting(given, name)
    return found


def _plain(where: str, key: str, value: Any) -> str | bool:
    if isinstance(value, bool):
        return str(value) if key.startswith(f"{SET}.") else value
    if isinstance(value, str | int | float):
        return str(value)
    raise ConfigurationError(f"{where}: {key}: give a string, a number, true or false, not {value!r}")


def _variable(key: str) -> str:
    return PREFIX + key.upper().replace("-", "_")


def _unknown(where: str, key: str, known: Iterable[str]) -> ConfigurationError:
    names = list(known)
    near = _nearest(key, names, 0.5)
    hint = f"did you mean {near}?" if near else f"it knows {', '.join(names)}"
    return ConfigurationError(f"{where}: {key} is not known: {hint}")


def _nearest(name: str, known: Iterable[str], alike: float) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), 1, alike)), None)
