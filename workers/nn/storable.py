"""What a model can do about files: each call finds the format, and imports it when it is asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from workers.nn import losses, metrics
from workers.nn.lookup import FUNCTION, deserialize, serialize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from workers.nn.compiled import Compiled
    from workers.nn.saving.signatures import Given
    from workers.nn.saving.state import Status


class Storable:
    """The methods of a model by which it is saved, loaded and described."""

    _compiled: Compiled | None

    def save(
        self,
        filepath: str | Path,
        overwrite: bool = True,
        include_optimizer: bool = True,
        save_format: str | None = None,
        signatures: Given | Mapping[str, Given] | None = None,
        save_traces: bool = True,
        zipped: bool = True,
    ) -> None:
        """Save architecture, weights, compile settings and the optimizer's state; `nn.load_model` goes on
        from there, to the bit. See `workers.nn.saving.api.save`."""
        from workers.nn.saving import api

        api.save(  # of a Model
            self,  # type: ignore[arg-type]
            filepath,
            overwrite,
            include_optimizer,
            save_format,
            signatures,
            save_traces,
            zipped,
        )

    def save_weights(
        self,
        filepath: str | Path,
        overwrite: bool = True,
        save_format: str | None = None,
        max_shard_size: float | None = None,
    ) -> None:
        """Save the weights, and the optimizer's state where the format holds it: see `saving.api`."""
        from workers.nn.saving import api

        api.save_weights(self, filepath, overwrite, save_format, max_shard_size)  # type: ignore[arg-type]  # a Model

    def load_weights(
        self, filepath: str | Path, skip_mismatch: bool = False, by_name: bool = False, **options: Any
    ) -> Status:
        """In place. Take the weights at `filepath`; returns what was restored: see `saving.api`."""
        from workers.nn.saving import api

        return api.load_weights(self, filepath, skip_mismatch, by_name, **options)  # type: ignore[arg-type]  # a Model

    def get_compile_config(self) -> dict[str, Any] | None:
        """What `compile` was given, as JSON values; None before."""
        return None if self._compiled is None else self._compiled.as_given()

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """In place. Compile as the model that gave this `get_compile_config`."""
        self.compile(  # type: ignore[attr-defined]  # of a Model
            optimizer=config.get("optimizer"),
            loss=_revived(config.get("loss"), losses.get),
            loss_weights=config.get("loss_weights"),
            metrics=_revived(config.get("metrics"), metrics.get),
            weighted_metrics=_revived(config.get("weighted_metrics"), metrics.get),
        )

    def to_json(self, **kwargs: Any) -> str:
        """The architecture as a JSON text: no weights, no compile settings. `kwargs` are those of
        `json.dumps`."""
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
