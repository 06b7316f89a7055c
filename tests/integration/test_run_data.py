"""Datasets in runs: Parquet shuffled by row groups and mapped at random, here and on S3; and remainders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.harness import TINY
from tests.integration.servers import SERVERS, settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.harness import Place

JOB = """
import numpy as np

from orchestrator import Checkpoints, Job
from workers import nn
from workers.data import ParquetDataset


def noisy(batch, rng):
    x, y = batch
    return x + rng.standard_normal(x.shape, np.float32), y


def job(url: str, noise: bool = True, remainder: str = "keep", steps: int = 30) -> Job:
    def model():
        m = nn.Sequential([nn.Input((8,)), nn.Dense(16, activation="relu"), nn.Dense(4)])
        loss = nn.losses.SparseCategoricalCrossentropy(from_logits=True)
        m.compile(nn.optimizers.Adam(1e-2), loss, ["accuracy"])
        return m

    def data():
        dataset = ParquetDataset(
            url, columns="x", label="y", shuffle_within="row_groups", window=2, cache_mb=0.01
        )
        return dataset.map(noisy) if noise else dataset

    return Job(
        model=model,
        data=data,
        validation=data,
        batch_size=33,
        microbatches=4,
        steps=steps,
        remainder=remainder,
        checkpoints=Checkpoints(every_steps=10),
    )
"""
SAMPLES = 250


def write(folder: Path) -> Path:
    """Two files of row groups of 40 samples."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    for part, count in enumerate((150, SAMPLES - 150)):
        y = rng.integers(0, 4, count)
        x = (rng.standard_normal((count, 8)) + y[:, None]).astype(np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 8)
        pq.write_table(pa.table({"x": lists, "y": y}), folder / f"part {part}.parquet", row_group_size=40)
    return folder


@pytest.fixture
def shuffled(place: Place) -> str:
    place.file("tables.py", JOB)
    return str(write(place.root / "train"))


def test_any_number_of_workers_gives_the_same_bits_of_mapped_shuffled_tables(
    place: Place, shuffled: str
) -> None:
    results = [
        place.run("tables.py", f"w{workers}", workers=workers, settings={"url": shuffled}).done()
        for workers in (1, 2, 3)
    ]
    assert len({result["state_digest"] for result in results}) == 1
    assert len({result["metrics"]["val_loss"] for result in results}) == 1
    plain = place.run("tables.py", "plain", settings={"url": shuffled, "noise": "no"}).done()
    assert plain["state_digest"] != results[0]["state_digest"]
    place.assert_nothing_left()


def test_a_run_that_goes_on_reads_and_draws_what_it_would_have(place: Place, shuffled: str) -> None:
    whole = place.run("tables.py", "whole", workers=1, settings={"url": shuffled}).done()
    place.run("tables.py", "parts", workers=2, steps=13, settings={"url": shuffled}).done()
    parts = place.run("tables.py", "parts", workers=3, settings={"url": shuffled}).done()
    assert parts["attempt"] == 2
    assert parts["state_digest"] == whole["state_digest"]


def test_another_map_is_another_job(place: Place, shuffled: str) -> None:
    place.run("tables.py", "run", steps=5, settings={"url": shuffled}).done()
    place.file("tables.py", JOB.replace("return x + rng", "return x - rng"))
    again = place.run("tables.py", "run", steps=6, settings={"url": shuffled}, as_json=False)
    again.one_clear_line(2, r"data \(map\)\.code is")


@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_remainders_give_the_same_bits_with_any_number_of_workers_and_others_than_without(
    place: Place, shuffled: str, remainder: str
) -> None:
    settings = {"url": shuffled, "remainder": remainder}
    one, three = (
        place.run("tables.py", f"w{workers}", workers=workers, settings=settings).done() for workers in (1, 3)
    )
    assert one["state_digest"] == three["state_digest"]
    kept = place.run("tables.py", "kept", settings={"url": shuffled}).done()
    assert kept["state_digest"] != one["state_digest"]
    again = place.run("tables.py", "w1", settings={"url": shuffled}, as_json=False)
    again.one_clear_line(2, f"remainder is {remainder} there and keep here")


def test_dropping_every_sample_is_refused(place: Place) -> None:
    place.file("few.py", TINY.replace("batch_size=batch", "batch_size=251, remainder='drop'"))
    outcome = place.run("few.py", as_json=False)
    outcome.one_clear_line(2, "the 250 samples of the data do not fill one batch of 251")


def test_a_damaged_row_group_ends_the_run_and_is_named(place: Place, shuffled: str) -> None:
    path = place.root / "train" / "part 1.parquet"
    data = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(1).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    outcome = place.run("tables.py", settings={"url": shuffled}, as_json=False).expect(1)
    assert f"{path}, row group 1: " in outcome.stderr
    assert "which was tried 4 times" in outcome.stderr


@pytest.mark.servers
def test_tables_on_s3_give_the_bits_of_tables_here(
    place: Place, shuffled: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import s3fs

    here = place.run("tables.py", "here", workers=1, settings={"url": shuffled}).done()
    folder = tmp_path_factory.mktemp("s3")
    with SERVERS["s3"](folder) as (environment, new_bucket), settings(environment):
        place.env |= environment
        url = new_bucket()
        s3fs.S3FileSystem(skip_instance_cache=True).put(shuffled, url.removeprefix("s3://"), recursive=True)
        there = place.run("tables.py", "there", workers=2, settings={"url": url}).done()
    assert there["state_digest"] == here["state_digest"]
    place.assert_nothing_left()
