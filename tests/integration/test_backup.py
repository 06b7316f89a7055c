"""`BackupAndRestore` in a process that is killed, or told to stop: the same fit ends in the same bits."""

from __future__ import annotations

import random
import signal
import sys
from typing import TYPE_CHECKING

from tests.integration.harness import Started

if TYPE_CHECKING:
    from tests.integration.harness import Place

SCRIPT = """
import hashlib, os, time
from pathlib import Path
import numpy as np
from workers import nn

BACKUP, DELAY_S = os.environ.get("BACKUP"), float(os.environ.get("DELAY_S", "0"))
rng = np.random.default_rng(0)
x, y = rng.random((100, 8), dtype=np.float32), rng.integers(0, 3, 100)
nn.utils.set_random_seed(1)
hidden = [nn.Dense(16, activation="relu"), nn.BatchNormalization(), nn.Dropout(0.3)]
model = nn.Sequential([nn.Input((8,)), *hidden, nn.Dense(3)])
loss = nn.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(nn.optimizers.Adam(0.01), loss, ["accuracy"])

def count(batch, logs):
    with open("batches", "a") as file:
        file.write(".")
    time.sleep(DELAY_S)

callbacks = [nn.callbacks.EarlyStopping(monitor="loss", patience=50), nn.callbacks.CSVLogger("log.csv"),
             nn.callbacks.LambdaCallback(on_train_batch_end=count)]
if BACKUP:
    callbacks.append(nn.callbacks.BackupAndRestore(BACKUP, save_freq=3))
model.fit(x, y, batch_size=16, epochs=12, verbose=0, callbacks=callbacks)
state = [*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)]
print(hashlib.sha256(b"".join(np.asarray(each).tobytes() for each in state)).hexdigest())
"""
BATCHES = 12 * 7


def begun(place: Place, **settings: str) -> Started:
    (place.root / "batches").unlink(missing_ok=True)
    run = Started(place, [sys.executable, "fit.py"], place.env | settings)
    place.started.append(run)
    return run


def batches(place: Place) -> int:
    path = place.root / "batches"
    return path.stat().st_size if path.exists() else 0


def test_section5_backup_and_restore_ends_in_the_same_bits_whoever_is_killed_when(place: Place) -> None:
    place.file("fit.py", SCRIPT)
    undisturbed = begun(place).wait().expect(0).stdout
    log = (place.root / "log.csv").read_text()
    rng = random.Random(5)
    trained = 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        run = begun(place, BACKUP="backup", DELAY_S="0.01")
        wanted = rng.randint(8, 20)
        run.until(lambda: batches(place) >= wanted, "it trains")  # noqa: B023 called at once
        run.popen.send_signal(number)
        outcome = run.wait()
        assert outcome.code == (75 if number == signal.SIGTERM else -9), outcome
        trained += batches(place)
        assert "Traceback" not in outcome.stderr, outcome
        if number == signal.SIGTERM:
            assert "SIGTERM: training is saved after" in outcome.stderr
    run = begun(place, BACKUP="backup")
    assert run.wait().expect(0).stdout == undisturbed
    trained += batches(place)
    assert BATCHES <= trained <= BATCHES + 2 * 3  # a kill costs what came after the last save of three
    assert (place.root / "log.csv").read_text() == log
    assert not (place.root / "backup").exists()
