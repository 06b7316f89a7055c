"""A run's metrics as Parquet: one row for each step, in parts below `metrics/` of the run directory.

The coordinator stores a part every few seconds and reads none while it trains; `read_metrics` gives what
stands. The columns are `step`, `epoch` (from 0), `attempt`, `time`, `loss`, one for each other metric, those
of validation data (`val_...`; null but where they were evaluated), and `steps_per_s`, over 16 steps.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage import catalog
from storage.errors import CorruptCheckpoint
from storage.store import open_store
from workers.reports import value_names
from workers.step_log import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from storage.store import Store

EVERY_S = 5.0
"""Seconds between two parts at first; later a hundredth of the attempt's time, at most a minute."""

MAX_EVERY_S = 60.0
MAX_ROWS = ROWS // 2
"""Rows that are stored at once, long before a node forgets them."""

_SPEED_STEPS = 16
_OWN = {"step", "epoch", "attempt", "time", "steps_per_s"}


def schema(names: Sequence[str]) -> pa.Schema:
    """The columns of a part, with these metrics."""
    return pa.schema(
        [
            ("step", pa.int64()),
            ("epoch", pa.int64()),
            ("attempt", pa.int64()),
            ("time", pa.timestamp("us", "UTC")),
            *((name, pa.float64()) for name in names),
            ("steps_per_s", pa.float64()),
        ]
    )


class MetricsWriter:
    """Stores an attempt's metrics: `take` and what else is told of them costs no I/O, `store` does.

    The newest step is held back: it may be evaluated yet. What could not be stored is tried again.
    """

    def __init__(self, store: Store, attempt: int, nonce: str) -> None:
        self._store = store
        self._attempt = attempt
        self._nonce = nonce
        self._lock = threading.Lock()  # of what is told
        self._storing = threading.Lock()
        self._rows: dict[int, tuple[float, ...]] = {}
        self._evaluated: dict[int, Mapping[str, float]] = {}
        self._names: tuple[str, ...] = ()
        self._validation: tuple[str, ...] = ()
        self._steps_per_epoch = 1
        self._base: int | None = None
        self._after: int | None = None  # steps up to this one are stored
        self._began_s: float | None = None
        self._due_s = 0.0
        self._unstored: tuple[str, bytes, int] | None = None  # key, part, last step
        self._recent: deque[tuple[int, float]] = deque(maxlen=_SPEED_STEPS + 1)
        self.complained = False

    def describe(self, description: Mapping[str, Any], steps_per_epoch: int) -> None:
        """What the numbers mean, from the job's description."""
        names = value_names(description["metrics"])
        validation = value_names(description["metrics"], "val_") if description.get("validation") else ()
        with self._lock:
            self._names = tuple(_column(name) for name in names)
            self._validation = tuple(_column(name) for name in validation)
            self._steps_per_epoch = max(1, steps_per_epoch)

    def begin(self, base: int) -> None:
        """The attempt goes on from this step; later ones are its own."""
        with self._lock:
            if self._base is None:
                self._base = base

    def take(self, rows: Iterable[tuple[float, ...]]) -> None:
        """Rows of steps: step, Unix seconds, metrics. Those that are known or stored change nothing."""
        with self._lock:
            for row in rows:
                if self._after is None or row[0] > self._after:
                    self._rows.setdefault(int(row[0]), row)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of validation data at a step."""
        with self._lock:
            if self._after is None or step > self._after:
                self._evaluated[step] = {_column(name): value for name, value in metrics.items()}

    def store(self, now_s: float, *, last: bool = False) -> None:
        """Store the next part if that is due or it is the `last`. Raises what the storage does."""
        with self._storing:
            if self._base is None:
                return
            if self._began_s is None:
                self._began_s, self._due_s = now_s, now_s + EVERY_S
            if not last and now_s < self._due_s and len(self._rows) < MAX_ROWS:
                return
            self._due_s = now_s + min(MAX_EVERY_S, max(EVERY_S, (now_s - self._began_s) / 100))
            if self._after is None:
                stored = self._stored_before()
                with self._lock:
                    self._after = min(stored, self._base)
                    self._drop(self._after)
            self._write()  # what failed last time
            with self._lock:
                self._unstored = self._part(last=last)
            self._write()

    def _stored_before(self) -> int:
        """The last step of the last attempt that has stored metrics."""
        parts = (catalog.parse_metrics(key) for key in self._store.list(catalog.METRICS))
        return max(((attempt, end) for attempt, _, end in filter(None, parts)), default=(0, 0))[1]

    def _drop(self, step: int) -> None:
        for of in (self._rows, self._evaluated):
            for old in [s for s in of if s <= step]:
                del of[old]

    def _part(self, *, last: bool) -> tuple[str, bytes, int] | None:
        steps = sorted(self._rows)
        steps = steps if last else steps[:-1]
        if not steps:
            return None
        table = self._table(steps)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        key = catalog.metrics_key(self._attempt, self._nonce, steps[0], steps[-1])
        return key, sink.getvalue(), steps[-1]

    def _table(self, steps: Sequence[int]) -> pa.Table:
        columns: dict[str, list[Any]] = {
            field: [] for field in schema((*self._names, *self._validation)).names
        }
        for step in steps:
            _, time_s, *values = self._rows[step]
            speed = None
            if self._recent and time_s > self._recent[0][1]:
                speed = (step - self._recent[0][0]) / (time_s - self._recent[0][1])
            self._recent.append((step, time_s))
            found: dict[str, Any] = dict(zip(self._names, values, strict=True)) | dict(
                self._evaluated.get(step, {})
            )
            found |= {
                "step": step,
                "epoch": (step - 1) // self._steps_per_epoch,
                "attempt": self._attempt,
                "time": int(time_s * 1e6),
                "steps_per_s": speed,
            }
            for name, column in columns.items():
                column.append(found.get(name))
        return pa.table(columns, schema=schema((*self._names, *self._validation)))

    def _write(self) -> None:
        if self._unstored is None:
            return
        key, data, last = self._unstored
        self._store.write(key, (data,))
        self._unstored = None
        with self._lock:
            self._after = last
            self._drop(last)


def _column(name: str) -> str:
    """The column of a metric; one whose name is a column's of ours gets an underscore."""
    return f"{name}_" if name in _OWN else name


def read_metrics(run_dir: str) -> pa.Table:
    """The metrics of a run, one row for each step that stands, in the order of steps.

    Where a step was trained by several attempts the last one counts; of what an attempt trained beyond the
    step that a later one went on from, nothing is given. No part: an empty table. Raises CorruptCheckpoint,
    which names the part, if one cannot be read.
    """
    store = open_store(run_dir)
    tables = []
    for key in sorted(store.list(catalog.METRICS)):
        if catalog.parse_metrics(key) is None:
            continue
        try:
            # Not by `read_table`, which starts a thread whatever it is told: one of Arrow's that is still
            # there at exit ends the process with SIGABRT.
            part = pq.ParquetFile(io.BytesIO(store.read(key)), pre_buffer=False)
            tables.append(part.read(use_threads=False))
        except (pa.ArrowInvalid, OSError) as exc:
            raise CorruptCheckpoint(f"{store.url}/{key}: this is no part of metrics: {exc}") from exc
    if not tables:
        return schema(("loss",)).empty_table()
    return standing(pa.concat_tables(tables, promote_options="default"))


def standing(table: pa.Table) -> pa.Table:
    """Of the rows of all attempts those that stand, in the order of steps."""
    newest_first = sorted(pc.unique(table["attempt"]).to_pylist(), reverse=True)
    kept: list[pa.Table] = []
    before: int | None = None
    for attempt in newest_first:
        rows = table.filter(pc.equal(table["attempt"], attempt))
        if before is not None:
            rows = rows.filter(pc.less(rows["step"], before))
        if rows.num_rows:
            before = pc.min(rows["step"]).as_py()
            kept.append(rows)
    joined = pa.concat_tables(kept).combine_chunks()
    order = pc.sort_indices(joined["step"])
    joined = joined.take(order)
    steps = joined["step"].to_numpy()
    first = [True, *(steps[1:] != steps[:-1]).tolist()]  # a part that was stored twice
    return joined.filter(pa.array(first))
