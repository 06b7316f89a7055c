"""What a model can do about files: each call finds the format, and imports it when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.nn import losses, metrics
from workers.nn.lookup import FUNCTION, deserialize, serialize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from workers.nn.compiled import Compiled


class Storable:
    """The methods of a model by which it is saved, loaded and described."""

    _compiled: Compiled | None

    def get_compile_config(self) -> dict[str, Any] | None:
        """What `compile` was given, as JSON values; None before."""
        return None if self._compiled is None else self._compiled.as_given()

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """In place. Compile as the model that gave this `get_compile_config`."""
        names = ("optimizer", "loss_weights")
        settings = {name: config.get(name) for name in names}
        settings["loss"] = _revived(config.get("loss"), losses.get)
        for name in ("metrics", "weighted_metrics"):
            settings[name] = _revived(config.get(name), metrics.get)
        self.compile(**settings)  # type: ignore[attr-defined]  # of a Model

    def to_json(self, **kwargs: Any) -> str:
        """The architecture as a JSON text: no weights, no compile settings. `kwargs` are those of
        `json.dumps`."""
        import json

        return json.dumps(serialize(self), **kwargs)


def _revived(config: Any, get: Callable[[Any], Any]) -> Any:
    """A structure with objects in the place of what was written of them; names stay names."""
    if isinstance(config, dict):
        if config.get("class_name") == FUNCTION:
            return deserialize("loss or metric", config, {})
        if "class_name" in config:
            return get(config)
        return {key: _revived(item, get) for key, item in config.items()}
    return [_revived(item, get) for item in config] if isinstance(config, list) else config
