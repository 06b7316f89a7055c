"""Commands whose options may be settings (`orchestrator.settings`), and `holdfast config`."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand
from typer.exceptions import TyperException

from orchestrator import settings
from orchestrator.ckpt import AsJson  # noqa: TC001 typer reads it
from orchestrator.discretion import is_secret
from orchestrator.settings import Setting
from orchestrator.terminal import put
from storage.errors import ConfigurationError
from workers.redaction import HIDDEN, Redactor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help=f"Settings; else {settings.FILE} beside the job."),
]
_NO_SETTINGS = {"config", "json", "help", "take-over", settings.SET}


class Configured(TyperCommand):
    """A command that takes what is not given as a flag from the environment, then from a file.

    Its command line in full takes the place of the one that was given in `sys.argv`: whoever keeps it, or
    starts it again, needs neither file nor environment.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """In place. Read the words, after those that settings stand for."""
        if not ctx.resilient_parsing and "--help" not in args:
            args = [*settings.flags(self._not_given(ctx, args)), *args]
            sys.argv = [sys.argv[0], ctx.info_name, *_without_config(args)]
        return super().parse_args(ctx, args)

    def _not_given(self, ctx: Any, args: list[str]) -> dict[str, Setting]:
        """The settings of file and environment that the command line does not give itself."""
        known, given = self.keys(), self.given(ctx, args)
        named = {f"{settings.SET}.{each.partition('=')[0]}" for each in given.get("settings") or ()}
        return {
            key: setting
            for key, setting in self.settings(ctx, args).items()
            if key not in named and (key not in known or given.get(known[key].name) is None)
        }

    def keys(self) -> dict[str, Any]:
        """The parameters that may be settings, by key."""
        return {key: param for param in self.params if (key := _key(param)) and key not in _NO_SETTINGS}

    def given(self, ctx: Any, args: list[str]) -> dict[str, Any]:
        """The values on the command line, by the parameters' names."""
        found: dict[str, Any] = self.make_parser(ctx).parse_args(args=list(args))[0]
        return found

    def settings(self, ctx: Any, args: list[str]) -> dict[str, Setting]:
        """The settings of file and environment, each checked. Raises ConfigurationError."""
        given, name = self.given(ctx, args), str(self.name)
        known = self.keys()
        siblings = ctx.parent.command.commands if ctx.parent else {}
        every = {each: siblings[each].keys() for each in settings.COMMANDS if each in siblings}
        keys = {each: set(params) for each, params in ({name: known} | every).items()}
        file, variable = given.get("config"), os.environ.get(settings.CONFIG) or None
        source = "--config" if file is not None else settings.CONFIG
        path = settings.path_of(given.get("target") or "", file if file is not None else variable, source)
        found = {} if path is None else settings.read(path, name, keys)
        is_flag = {key: param.is_flag for key, param in known.items()}
        found |= settings.of_environment(os.environ, is_flag)
        for key, setting in found.items():
            if key in known:
                _check(ctx, key, known[key], setting)
        return found


def _without_config(args: list[str]) -> list[str]:
    """The words without `--config FILE`: what the file says stands among them."""
    kept, rest = [], iter(args)
    for word in rest:
        if word == "--config":
            next(rest, None)
        elif not word.startswith("--config="):
            kept.append(word)
    return kept


def _key(param: Any) -> str:
    """The long name of an option, without its dashes; "" for an argument."""
    return "" if isinstance(param, TyperArgument) else max(param.opts, key=len).lstrip("-")


def _check(ctx: Any, key: str, param: Any, setting: Setting) -> None:
    if param.is_flag != isinstance(setting.value, bool):
        wanted = "true or false" if param.is_flag else "a value"
        said = str(setting.value).lower() if isinstance(setting.value, bool) else setting.value
        raise ConfigurationError(f"{setting.source}: {key} = {said}: give {wanted}")
    try:
        param.process_value(ctx, setting.value)
    except (TyperException, ConfigurationError) as error:
        what = error.message if isinstance(error, TyperException) else str(error)
        raise ConfigurationError(f"{setting.source}: {key} = {setting.value}: {what.rstrip('.')}") from error


def config(
    ctx: typer.Context,
    target: Annotated[
        str, typer.Argument(metavar="[FILE[:NAME] | EXAMPLE]", help="The job that the settings are for.")
    ] = "",
    command: Annotated[
        str, typer.Option("--command", metavar="NAME", help=f"One of {', '.join(settings.COMMANDS)}.")
    ] = "run",
    config: Config = None,
    as_json: AsJson = False,
) -> int:
    """Show each setting of a command, and where it comes from.

    Flags of the command may follow.

    holdfast config train.py --workers 4
    """
    assert ctx.parent is not None
    commands: Mapping[str, Any] = ctx.parent.command.commands  # type: ignore[attr-defined]  # it is a group
    takers = [name for name in settings.COMMANDS if name in commands]
    if command not in takers:
        raise ConfigurationError(f"--command {command}: give one of {', '.join(takers)}")
    asked: Configured = commands[command]
    if target and command == "run":  # what is submitted may be on the cluster alone
        from orchestrator.jobs import JobSource

        JobSource.parse(target, {})  # complains about what is not there
    words = [*([f"--config={config}"] if config else []), *([target] if target else []), *ctx.args]
    context = asked.context_class(asked, info_name=command, parent=ctx.parent)
    found = dict(_values(asked, context, words))
    if as_json:
        put(json.dumps({key: {"value": each.value, "source": each.source} for key, each in found.items()}))
        return 0
    shown = [(key, "" if each.value is None else str(each.value), each.source) for key, each in found.items()]
    widths = [max(len(row[i]) for row in shown) for i in range(2)]
    for key, value, source in shown:
        put(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {source}")
    return 0


def _values(asked: Configured, ctx: Any, words: list[str]) -> Iterable[tuple[str, Any]]:
    """Each key with its setting, in the order of the command's options, then the job's parameters."""
    found = asked.settings(ctx, words)
    given = asked.given(ctx, words)
    for key, param in asked.keys().items():
        if (value := given.get(param.name)) is not None:
            _check(ctx, key, param, Setting(value, "the command line"))
            yield key, Setting(value, f"--{key}")
        else:
            yield key, found.get(key, Setting(param.get_default(ctx), settings.DEFAULT))
    parameters = {key: each for key, each in found.items() if key.startswith(f"{settings.SET}.")}
    for pair in given.get("settings") or ():
        name, _, value = pair.partition("=")
        parameters[f"{settings.SET}.{name}"] = Setting(value, f"--{settings.SET}")
    redactor = Redactor.of(os.environ)
    for key, each in parameters.items():
        yield key, Setting(HIDDEN, each.source) if is_secret(key, str(each.value), redactor) else each


def register(app: typer.Typer) -> None:
    """Add `config` to the command line."""
    app.command("config", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(config)
