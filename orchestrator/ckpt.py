"""The commands `holdfast ckpt ...`: look at checkpoints, check them, copy them, keep or delete them."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from orchestrator.arguments import Insecure  # noqa: TC001 typer reads it
from orchestrator.entry import interrupt
from orchestrator.terminal import put, say
from storage.errors import CheckpointError, ConfigurationError, HoldfastError, ObjectMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from storage.catalog import Entry
    from storage.manifest import Manifest
    from storage.run_directory import RunDirectory
    from storage.verification import Report

FAULTY = 3
"""Exit code of a check that found a fault."""

ckpt = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at checkpoints, check them, copy them.\n\nADDRESS is RUN_DIR (its latest), RUN_DIR#STEP, or a "
    "checkpoint's own URL.\n\nholdfast ckpt ls runs/digits",
)


@ckpt.callback()
def _interruptible() -> None:
    signal.signal(signal.SIGINT, interrupt)


RunDir = Annotated[
    str,
    typer.Argument(
        metavar="RUN_DIR",
        help="A run directory: a path, or any fsspec URL; or http://HOST:PORT#NAME on a Ray cluster.",
    ),
]
Address = Annotated[
    str, typer.Argument(metavar="ADDRESS", help="RUN_DIR for its latest, RUN_DIR#STEP, or its own URL.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]


@ckpt.command("ls")
def ls(run_dir: RunDir, insecure: Insecure = False, as_json: AsJson = False) -> int:
    """List the checkpoints of a run, and what each is worth.

    holdfast ckpt ls runs/digits
    """
    from orchestrator.status import open_run
    from storage import catalog

    run = open_run(run_dir, insecure=insecure)
    entries = run.entries()
    pins, verified = run.pins(), run.on_record(catalog.VERIFIED)
    if as_json:
        put(json.dumps([_row(e, e.directory in pins, e.directory in verified) for e in entries]))
        return 0
    if not entries:
        put("no checkpoints yet")
    for entry in entries:
        marks = [
            mark for mark, there in (("pinned", pins), ("verified", verified)) if entry.directory in there
        ]
        notes = ", ".join([*marks, *([entry.reason] if entry.reason else [])])
        line = f"step {entry.step:>8}  attempt {entry.attempt:>3}  {entry.nbytes / 1e6:>10.2f} MB"
        put(_plain(f"{line}  {entry.status:<11}  {entry.directory}{f'  ({notes})' if notes else ''}"))
    return 0


def _plain(text: str) -> str:
    """One line of what a checkpoint says, which anyone may have written: no commands to the terminal."""
    from storage.strict_json import printable

    return printable(text, longest=10_000)


def _row(entry: Entry, pinned: bool, verified: bool) -> dict[str, Any]:
    from storage.strict_json import spelled

    manifest = entry.manifest
    return {
        "step": entry.step,
        "attempt": entry.attempt,
        "status": entry.status,
        "reason": entry.reason,
        "nbytes": entry.nbytes,
        "directory": entry.directory,
        "pinned": pinned,
        "verified": verified,
        "created_at": manifest.created_at if manifest else None,
        "state_digest": manifest.state_digest if manifest else None,
        "metrics": spelled(dict(manifest.metrics)) if manifest else {},
    }


@ckpt.command("show")
def show(address: Address, as_json: AsJson = False) -> int:
    """Tell what a checkpoint holds and where it comes from.

    holdfast ckpt show runs/digits#2000
    """
    from storage.address import find
    from storage.reader import open_checkpoint

    run, store, directory = find(address)
    checkpoint = open_checkpoint(store, directory)
    manifest = checkpoint.manifest
    number, chain = run.line()
    lineage = [link.to_json() for link in chain or ()]
    doc = {
        "url": f"{store.url}/{directory}",
        **_about(manifest),
        "nbytes": manifest.nbytes,
        "lineage": {"newest_attempt": number, "chain": lineage},
        "arrays": [
            {
                "name": stored.array.name,
                "dtype": stored.array.dtype,
                "length": stored.array.length,
                "shards": stored.num_shards,
                "nbytes": sum(manifest.objects[stored.shard_key(i)].nbytes for i in range(stored.num_shards)),
                "compression": None if stored.zstd_level is None else "zstd",
            }
            for stored in checkpoint.arrays
        ],
        "variables": [
            {
                "name": name,
                "shape": list(checkpoint[name].shape),
                "dtype": str(checkpoint[name].dtype),
                "nbytes": checkpoint[name].nbytes,
            }
            for name in checkpoint
        ],
    }
    put(json.dumps(doc) if as_json else _shown(doc))
    return 0


def _about(manifest: Manifest) -> dict[str, Any]:
    from storage.strict_json import spelled

    return {
        "run_id": manifest.run_id,
        "step": manifest.step,
        "attempt": manifest.attempt,
        "parent": manifest.parent.to_json() if manifest.parent else None,
        "created_at": manifest.created_at,
        "created_by": dict(manifest.created_by),
        "versions": dict(manifest.versions),
        "state_digest": manifest.state_digest,
        "metrics": spelled(dict(manifest.metrics)),
        "counters": dict(manifest.counters),
        "metadata": dict(manifest.metadata),
        "fingerprint": dict(manifest.fingerprint),
    }


def _shown(doc: dict[str, Any]) -> str:
    by, parent = doc["created_by"], doc["parent"]
    lineage = [f"attempt {link['attempt']} to step {link['step']}" for link in doc["lineage"]["chain"]]
    facts = {
        "checkpoint": doc["url"],
        "step": f"{doc['step']}, attempt {doc['attempt']}",
        "written": f"{doc['created_at']} on {by.get('host', '?')}, process {by.get('pid', '?')}",
        "by": ", ".join(f"{name} {version}" for name, version in doc["versions"].items()),
        "parent": f"step {parent['step']}, attempt {parent['attempt']}" if parent else "none",
        "lineage": ", ".join(lineage) or "none before it",
        "metrics": _pairs(doc["metrics"]),
        "counters": _pairs(doc["counters"]),
        "metadata": _pairs(doc["metadata"]),
        "size": decimal(doc["nbytes"]),
        "state digest": doc["state_digest"],
    }
    lines = [_plain(f"{name:<12}  {value}") for name, value in facts.items()]
    for array in doc["arrays"]:
        packed = f", {array['compression']}" if array["compression"] else ""
        shards = f"{array['shards']} shard{'' if array['shards'] == 1 else 's'}"
        lines.append(
            f"array         {array['name']}: {array['length']} {array['dtype']} in {shards}, "
            f"{decimal(array['nbytes'])}{packed}"
        )
    rows = [(v["name"], v["dtype"], str(tuple(v["shape"])), f"{v['nbytes']}") for v in doc["variables"]]
    lines += ["", *_table(("variable", "dtype", "shape", "bytes"), rows)]
    return "\n".join(lines)


def _pairs(values: dict[str, Any]) -> str:
    shown = {name: f"{x:.6g}" if isinstance(x, float) else str(x) for name, x in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "none"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]


@ckpt.command("verify")
def verify(
    address: Address,
    read_data: Annotated[bool, typer.Option("--read-data", help="Read and check every byte.")] = False,
    subset: Annotated[
        str | None,
        typer.Option("--read-data-subset", metavar="P", help="Read a random share, such as 5%, or 0.05."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Which share: the number that was printed before.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All checkpoints of a run.")] = False,
    as_json: AsJson = False,
) -> int:
    """Look for damage; exit code 3 if there is any.

    Damage is named with the object and the bytes. Without options it is looked for in manifest, sizes,
    documents, digests and indexes.

    holdfast ckpt verify runs/digits --all --read-data
    """
    share = None if subset is None else _share(subset)
    if read_data and share is not None:
        raise ConfigurationError("--read-data reads every byte: leave it out, or --read-data-subset")
    seed = time.time_ns() % 2**32 if seed is None else seed
    found = (_verify_all if every else _verify)(address, read_data, share, seed)
    is_bad = any(row["faults"] for row in found)
    if as_json:
        put(json.dumps({"ok": not is_bad, "seed": None if share is None else seed, "checkpoints": found}))
    else:
        for row in found:
            read = f"{decimal(row['nbytes_read'])} read"
            put(f"{row['directory']}: {row['status']}, {row['objects']} objects, {read}")
            for fault in row["faults"]:
                where = "" if fault["start"] is None else f", bytes {fault['start']} to {fault['stop']}"
                put(_plain(f"  {fault['object']}{where}: {fault['text']}"))
        if share is not None:
            put(f"the same share again: --seed {seed}")
        if not found:
            put("no checkpoints yet")
    return FAULTY if is_bad else 0


def _share(text: str) -> float:
    with suppress(ValueError):
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if 0 < share <= 1:
            return share
    raise ConfigurationError(f"--read-data-subset {text}: give a share such as 5% or 0.05")


def _verify(address: str, read_data: bool, share: float | None, seed: int) -> list[dict[str, Any]]:
    from storage.address import find

    run, store, directory = find(address)
    report = _checked(run, directory, "verifying", read_data, share, seed)
    if report is None:
        raise CheckpointError(f"{store.url}/{directory} was deleted while it was being verified")
    return [_verified(run, report, read_data)]


def _checked(
    run: RunDirectory, directory: str, what: str, read_data: bool, share: float | None, seed: int
) -> Report | None:
    """What verifying found; None if the checkpoint has been deleted meanwhile, as retention does."""
    from storage.manifest import MANIFEST
    from storage.objects import sizes_in
    from storage.verification import verify_checkpoint

    with suppress(ObjectMissing), _Progress(what) as told:
        report = verify_checkpoint(
            run.store, directory, read_data=read_data, subset=share, seed=seed, progress=told
        )
        if not report.faults or MANIFEST in sizes_in(run.store, directory):
            return report
    return None


def _verified(run: RunDirectory, report: Report, read_data: bool) -> dict[str, Any]:
    if read_data and not report.faults:
        with suppress(HoldfastError):  # a place that can only be read keeps no record
            run.mark_verified(report.directory)
    return {"status": "damaged" if report.faults else "good", **report.to_json()}


def _verify_all(address: str, read_data: bool, share: float | None, seed: int) -> list[dict[str, Any]]:
    from orchestrator.status import open_run
    from storage.verification import Report

    if "#" in address:
        raise ConfigurationError(f"--all takes the directory of a run, and not {address}")
    run = open_run(address)
    rows = []
    for entry in run.entries():
        if not entry.committed:
            nothing = Report(entry.directory, entry.step, 0, 0, ())
            rows.append({"status": "never committed", **nothing.to_json()})
            continue
        report = _checked(run, entry.directory, f"verifying step {entry.step}", read_data, share, seed)
        if report is None:
            nothing = Report(entry.directory, entry.step, 0, 0, ())
            rows.append({"status": "deleted meanwhile", **nothing.to_json()})
            continue
        row = _verified(run, report, read_data)
        if entry.status == "quarantined" and not row["faults"]:
            text = "it is in quarantine, but nothing is wrong now: delete its record below quarantine/"
            row["faults"] = [{"object": "manifest.json", "start": None, "stop": None, "text": text}]
        elif entry.status == "invalid":
            row["status"] = f"good, but {entry.reason}"
        rows.append(row)
    return rows


@ckpt.command("diff")
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="An address.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    as_json: AsJson = False,
) -> int:
    """Tell which variables of two checkpoints differ, and how much.

    holdfast ckpt diff runs/digits#2000 runs/digits
    """
    import storage
    from storage.diff import compare
    from storage.strict_json import spelled

    found = compare(storage.open(a), storage.open(b))
    if as_json:
        put(json.dumps(spelled(found.to_json())))
        return 0
    lines = [f"only in A: {name}" for name in found.only_a]
    lines += [f"only in B: {name}" for name in found.only_b]
    lines += [f"{name}: {x} in A, {y} in B" for name, x, y in found.other_kind]
    rows = [
        (d.name, f"{d.elements} of {d.size}", f"{d.max_abs:.6g}", f"{d.mean_abs:.6g}", str(d.nan_in_one))
        for d in found.different
    ]
    if rows:
        lines += _table(("variable", "elements that differ", "max", "mean", "NaN in one"), rows)
    lines.append(f"{found.equal} variables are equal" + (" and so are A and B" if found.is_equal else ""))
    put("\n".join(lines))
    return 0


@ckpt.command("gc")
def gc(
    run_dir: RunDir,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be deleted.")] = False,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", help="Leave alone what has changed since then.")
    ] = 3600.0,
    invalid: Annotated[
        bool, typer.Option("--invalid", help="Also complete checkpoints that are on no line any more.")
    ] = False,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> int:
    """Delete what earlier attempts have left incomplete.

    holdfast ckpt gc runs/digits --dry-run
    """
    from orchestrator.execution import check_at_rest
    from orchestrator.status import open_run

    if not 0 <= grace < math.inf:
        raise ConfigurationError(f"--grace {grace:g}: give seconds, 0 or more")
    run = open_run(run_dir, insecure=insecure)
    if not dry_run:
        check_at_rest(run, say)
    found = run.collect(grace, invalid=invalid, dry_run=dry_run)
    nbytes = sum(garbage.nbytes for garbage in found)
    if as_json:
        rows = [{"directory": g.directory, "reason": g.reason, "nbytes": g.nbytes} for g in found]
        put(json.dumps({"deleted": rows, "nbytes": nbytes, "dry_run": dry_run}))
        return 0
    verb = "would delete" if dry_run else "deleted"
    for garbage in found:
        put(f"{verb} {garbage.directory} ({garbage.reason})")
    put(f"{verb} {len(found)} directories, {decimal(nbytes)}")
    return 0


@ckpt.command("pin")
def pin(address: Address, as_json: AsJson = False) -> int:
    """Keep a checkpoint whatever the rules of retention say.

    holdfast ckpt pin runs/digits#2000
    """
    return _set_pin(address, True, as_json)


@ckpt.command("unpin")
def unpin(address: Address, as_json: AsJson = False) -> int:
    """Leave a checkpoint to the rules of retention again.

    holdfast ckpt unpin runs/digits#2000
    """
    return _set_pin(address, False, as_json)


def _set_pin(address: str, pinned: bool, as_json: bool) -> int:
    from storage.address import find

    run, _, directory = find(address)
    (run.pin if pinned else run.unpin)(directory)
    doc = {"directory": directory, "pinned": pinned}
    put(json.dumps(doc) if as_json else f"{directory}: {'pinned' if pinned else 'not pinned'}")
    return 0


@ckpt.command("export")
def export(
    address: Address,
    to: Annotated[
        str,
        typer.Option("--to", metavar="URL", help="X.safetensors, X.npz, or a directory: named Zarr arrays."),
    ],
    names: Annotated[
        list[str] | None,
        typer.Option("--names", metavar="GLOB", help="Only these; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Write variables as a file that other libraries read.

    holdfast ckpt export runs/digits --to digits.safetensors --names 'params/*'
    """
    import storage
    from storage.export import export as write

    written = write(storage.open(address), to, names or None)
    put(json.dumps({"to": to, "variables": written}) if as_json else f"{to}: {len(written)} variables")
    return 0


@ckpt.command("cp")
def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="An address.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A run directory: any URL.")],
    as_json: AsJson = False,
) -> int:
    """Copy a checkpoint to another place, and check it there.

    The run can go on from it there.

    holdfast ckpt cp runs/digits s3://bucket/runs/digits
    """
    from orchestrator.execution import check_at_rest
    from storage.run_directory import RunDirectory
    from storage.store import open_store
    from storage.transfer import copy

    check_at_rest(RunDirectory(open_store(destination)), say)
    with _Progress("copying") as told:
        copied = copy(source, destination, told)
    if as_json:
        doc = {"url": copied.url, "step": copied.step, "nbytes": copied.nbytes, "was_there": copied.was_there}
        put(json.dumps(doc))
        return 0
    done = "was there already, and is good" if copied.was_there else "copied and checked"
    put(f"{copied.url}: {done}, {decimal(copied.nbytes)}")
    return 0


class _Progress:
    """On a terminal, one line that tells how far a long command is."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._last = 0.0
        self._shown = False

    def __enter__(self) -> Callable[[int], None]:
        return self._tell

    def _tell(self, nbytes: int) -> None:
        if sys.stderr and sys.stderr.isatty() and time.monotonic() - self._last > 0.2:
            self._last, self._shown = time.monotonic(), True
            sys.stderr.write(f"\r{self._what}: {nbytes / 1e6:.0f} MB")
            sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
