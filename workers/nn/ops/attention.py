"""Attention of several heads as one operation.

In the shape suffixes: B samples, H heads, Q queries, S keys, E features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import Op, Run, Site, apply, broadcast, register, same_dtype
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array

_MASKED = -1e9
"""The score of what may not be attended to; Keras's. Where all is masked, all counts the same."""


@register
class Attention(Op):
    """softmax(scale q k^T) v for each head (Vaswani et al., NeurIPS 2017).

    Operands: queries (B, Q, H E), keys (B, S, H E), values (B, S, H F), and with the attribute "masked" a
    bool that goes with (B, H, Q, S), True where attention is allowed. Attributes: "num_heads", "scale",
    "causal" (query i sees keys 0 to i), "dropout" (of the scores). Outputs: (B, Q, H F), and the scores
    (B, H, Q, S) before dropout.
    """

    name = "attention"
    random = True
    arity = (3, 4)
    attributes: ClassVar = {
        "num_heads": kinds.count,
        "scale": kinds.number,
        "causal": kinds.flag,
        "dropout": kinds.number,
    }

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        q, k, v = inputs[:3]
        heads = attrs["num_heads"]
        if not (len(q.shape) == len(k.shape) == len(v.shape) == 3) or None in (*q.shape[1:], *v.shape[1:]):
            raise ConfigurationError(
                f"attention: queries of shape {q.shape} and values of shape {v.shape}: give (samples, steps, "
                "features) with a known number of steps"
            )
        if q.shape[2] != k.shape[2] or k.shape[1] != v.shape[1]:
            raise ConfigurationError(
                f"attention: queries {q.shape}, keys {k.shape} and values {v.shape} do not go together"
            )
        dtype = same_dtype(q, k, v)
        scores = (q.shape[0], heads, q.shape[1], k.shape[1])
        if len(inputs) > 3:
            broadcast(inputs[3].shape, scores)
        return Spec((*q.shape[:2], v.shape[2]), dtype), Spec(scores, dtype)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        dtype = site.outputs[0].dtype
        self._scale = site.attrs["scale"]
        self._rate = site.attrs["dropout"]
        self._y, self._scores = site.empty(0), site.empty(1)
        scores = site.outputs[1].dims
        self._row = site.workspace((*scores[:3], 1), dtype)
        self._future = np.triu(np.ones(scores[2:], bool), 1) if site.attrs["causal"] else None
        self._hidden = self._future
        self._kept = self._weights = self._scores
        if self._rate:
            self._kept = site.workspace(scores, "float32")  # whatever the dtype, so that the mask is the same
            self._weights = site.workspace(scores, dtype)
        if any(site.needs):
            self._d_scores = site.workspace(scores, dtype)
        self._gradients = [site.like(i) if site.needs[i] else None for i in range(3)]
        self._qkv = (self._y, self._y, self._y)  # of the last forward; any arrays until then

    def forward(self, run: Run, *inputs: Array) -> tuple[Array, ...]:
        q, k, v = self._qkv = (inputs[0], inputs[1], inputs[2])
        scores, row = self._scores, self._row
        np.matmul(self._by_head(q), self._by_head(k).swapaxes(2, 3), out=scores)
        scores *= self._scale
        self._hidden = self._future
        if len(inputs) > 3:
            self._hidden = ~inputs[3] if self._future is None else ~inputs[3] | self._future
        if self._hidden is not None:
            np.copyto(scores, _MASKED, where=self._hidden)
        np.max(scores, axis=-1, keepdims=True, out=row)
        scores -= row
        np.exp(scores, out=scores)
        np.sum(scores, axis=-1, keepdims=True, out=row)
        scores /= row
        if self._rate:
            self._drop(run)
        np.matmul(self._weights, self._by_head(v), out=self._by_head(self._y))
        return self._y, scores

    def _drop(self, run: Run) -> None:
        assert run.streams is not None
        kept = self._kept
        run.streams.generator(self.site.attrs.get("stream", 0)).random(out=kept, dtype=np.float32)
        np.less(kept, np.float32(1 - self._rate), out=kept)
        kept *= 1 / (1 - self._rate)
        np.multiply(self._scores, kept, out=self._weights)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        q, k, v = self._qkv
        d_scores, weights = self._d_scores, self._weights
        found: list[Array | None] = [None] * len(self.site.inputs)
        if dy[0] is None:
            d_scores[...] = dy[1]
        else:
            dy_BHQF = self._by_head(dy[0])
            if self.site.needs[2]:
                found[2] = self._product(2, weights.swapaxes(2, 3), dy_BHQF, into)
            np.matmul(dy_BHQF, self._by_head(v).swapaxes(2, 3), out=d_scores)
            if self._rate:
                d_scores *= self._kept
            if dy[1] is not None:
                d_scores += dy[1]
        d_scores -= np.einsum("bhqs,bhqs->bhq", d_scores, self._scores)[..., None]
        d_scores *= self._scores
        d_scores *= self._scale
        if len(found) > 3 and self._hidden is not None:  # where all is masked, the weights are not 0
            np.copyto(d_scores, 0, where=self._hidden)
        if self.site.needs[0]:
            found[0] = self._product(0, d_scores, self._by_head(k), into)
        if self.site.needs[1]:
            found[1] = self._product(1, d_scores.swapaxes(2, 3), self._by_head(q), into)
        return found

    def _product(self, operand: int, a: Array, b: Array, into: Sequence[Array | None]) -> Array:
        """a @ b for each head, as the gradient of an operand."""
        target = into[operand]
        gradient = self._gradients[operand] if target is None else target
        assert gradient is not None
        np.matmul(a, b, out=self._by_head(gradient))
        return gradient

    def _by_head(self, array: Array) -> Array:
        """A view (B, H, steps, E) of (B, steps, H E)."""
        B, steps, features = array.shape
        heads = self.site.attrs["num_heads"]
        return array.reshape(B, steps, heads, features // heads).swapaxes(1, 2)


def attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    *,
    num_heads: int,
    scale: float,
    causal: bool = False,
    dropout: float = 0.0,
) -> tuple[Any, Any]:
    """What the queries find, and the scores; as `Attention`."""
    operands = [query, key, value, *([] if mask is None else [mask])]
    found: tuple[Any, Any] = apply(
        "attention", *operands, num_heads=num_heads, scale=scale, causal=causal, dropout=dropout
    )
    return found
