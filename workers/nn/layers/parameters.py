"""How layers keep what is said of each of their variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.nn import constraints, initializers, regularizers
from workers.nn.layers.base import Layer
from workers.nn.lookup import serialize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.nn.variables import Variable


class WithParameters(Layer):
    """A layer whose variables each have an initializer, a regularizer and a constraint, as attributes
    `<prefix>_initializer` and so on."""

    def keep(self, prefix: str, initializer: Any, regularizer: Any = None, constraint: Any = None) -> None:
        """In place. Keep the settings of a variable."""
        setattr(self, f"{prefix}_initializer", initializers.get(initializer))
        setattr(self, f"{prefix}_regularizer", regularizers.get(regularizer))
        setattr(self, f"{prefix}_constraint", constraints.get(constraint))

    def make(self, prefix: str, shape: Sequence[int], name: str | None = None) -> Variable:
        """A new variable with these settings, named as their prefix unless `name` is given."""
        return self.add_weight(
            shape,
            getattr(self, f"{prefix}_initializer"),
            regularizer=getattr(self, f"{prefix}_regularizer"),
            constraint=getattr(self, f"{prefix}_constraint"),
            name=name or prefix,
        )

    def kept(self, *prefixes: str) -> dict[str, Any]:
        """These settings as JSON values."""
        names = [f"{p}_{what}" for what in ("initializer", "regularizer", "constraint") for p in prefixes]
        return {name: serialize(getattr(self, name)) for name in names}
