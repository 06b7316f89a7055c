"""Running a job undisturbed and under real faults, as a person would: by the command `holdfast run`."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.chaos import Delivered, Fault, Plan, Report, Seen, Stopped
from orchestrator.chaos_watch import Watch
from orchestrator.failures import last_line
from orchestrator.process_tree import Member, kill_all, member_of, members
from storage.errors import ConfigurationError, HoldfastError, InfrastructureError, UserCodeError
from storage.run_directory import RunDirectory
from storage.store import open_store
from storage.verification import verify_checkpoint
from workers.processes import is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

POLL_S = 0.01
GRACE_S = 30.0
"""The grace period of the run that gets SIGTERM."""

STALL_S = 120.0
"""Seconds without a step after which a run is taken to hang."""

TARGET_S = 30.0
"""Seconds that a fault waits for a process that it can strike."""

FRUITLESS = 5
"""Times that the same command is given again although the last time brought no step."""

WARM_UP_S = (0.5, 2.0)
"""When the run that gets SIGTERM gets it, after its first steps."""

ENDLESS = 10**9
"""Steps of a run that is to be stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A job, how it is to be run, and how it is to be disturbed."""

    target: str
    settings: tuple[str, ...]
    workers: str
    nodes: int
    runtime: str
    steps: int | None
    run_dir: str | None
    plan: Plan

    def __post_init__(self) -> None:
        if "node" in self.plan.kinds and self.nodes < 2:
            raise ConfigurationError(
                f"--nodes {self.nodes}: a node can be lost only of 2 or more: give --nodes 2"
            )
        if self.steps is None and self.plan.count is None:
            raise ConfigurationError(
                "give --steps N, the steps to train, or --count N, the faults to deliver"
            )

    def command(self, url: str, steps: int | None, *more: str) -> list[str]:
        """The arguments of `holdfast run` for this job."""
        words = ["run", self.target, "--run-dir", url, "--workers", self.workers, "--runtime", self.runtime]
        words += ["--nodes", str(self.nodes)]
        words += ["--steps", str(steps)] if steps is not None else []
        for setting in self.settings:
            words += ["--set", setting]
        return [*words, *more, "--json"]

    @property
    def repeat(self) -> str:
        """The command line that does the same again."""
        plan = self.plan
        words = ["holdfast", "chaos", self.target, "--workers", self.workers, "--nodes", str(self.nodes)]
        words += ["--runtime", self.runtime, "--faults", ",".join(plan.kinds), "--every", f"{plan.every_s:g}"]
        words += ["--steps", str(self.steps)] if self.steps is not None else []
        words += ["--count", str(plan.count)] if plan.count is not None else []
        for setting in self.settings:
            words += ["--set", setting]
        return shlex.join([*words, "--seed", str(plan.seed)])


class _TooShort(Exception):
    """The job ended before it could be disturbed."""


class _Command:
    """A `holdfast run` under way, with what it says going to files."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self._out = log.with_suffix(".out")
        self._err = log.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            # In a session of its own: a terminal's Ctrl-C is for us, who end what we have started.
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self._popen.pid
        self.began_s = time.monotonic()

    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._popen.poll()

    def result(self) -> dict[str, Any]:
        """What it has printed, {} if that is no result."""
        try:
            value = json.loads(self._out.read_text())
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def said(self) -> str:
        """Its standard error."""
        return self._err.read_text(errors="replace")


class Campaign:
    """The runs of one `holdfast chaos`. `scratch` is a directory for all that is kept of them."""

    def __init__(self, request: Request, scratch: Path, tell: Callable[[str], None]) -> None:
        self._request = request
        self._plan = request.plan
        self._scratch = scratch
        self._tell = tell
        self._rng = random.Random(request.plan.seed + 1)
        self._command: _Command | None = None
        self._watch: Watch | None = None
        self._url = ""
        self._steps = ENDLESS
        self._commands = self._commands_before = 0
        self._continue: list[tuple[float, Member]] = []  # when which stopped worker goes on
        self._rate = 0.0
        self._stepped = (0.0, 0)  # (when, step) of the last step seen
        self._fruitful = -1  # the step at the last end of a command
        self._tries = 0  # commands since then without another step
        self.seen = Seen()

    def run(self) -> str | None:
        """Do everything; returns why the job was too short, if it was."""
        try:
            self._stop_early()
            self._steps = self._request.steps or self._plan.steps(self._rate)
            self._undisturbed()
            self._disturbed()
        except _TooShort as short:
            return str(short)
        finally:
            self.end()
        return None

    def end(self) -> None:
        """End what was started, and free its memory."""
        for _, member in self._continue:
            member.send(signal.SIGCONT)
        self._continue = []
        if self._command is not None:
            kill_all(self._command.pid, self._others())
            self._command.code()
            self._command = None
        if self._watch is not None:
            self._watch.close()
            self._watch.remove_memory()
            self._watch = None

    # -- the three runs -----------------------------------------------------------------------------------

    def _stop_early(self) -> None:
        """A short run gets SIGTERM; it also shows how fast the job is."""
        self._steps = self._request.steps or ENDLESS
        self._begin("stopped", self._steps, "--grace-period", f"{GRACE_S:g}")
        began_s, first = self._first_step("SIGTERM")
        warm_s = self._rng.uniform(*WARM_UP_S)
        while self._at_work() and time.monotonic() - began_s < warm_s:
            self._rest()
        self._measure(began_s, first)
        command = self._running()
        asked_s = time.monotonic()
        if self._at_work():
            os.kill(command.pid, signal.SIGTERM)
        while (code := self._code()) is None and time.monotonic() - asked_s < 2 * GRACE_S:
            self._rest()
        seconds = time.monotonic() - asked_s
        step = int(command.result().get("step", -1))
        if code == 0 or not self._at_work(code):
            raise self._too_short("ended before it could be asked to stop")
        latest = RunDirectory(open_store(self._url)).latest()
        checkpoint = None if latest is None else latest.step
        self.seen.stopped = Stopped(-1 if code is None else code, seconds, GRACE_S, step, checkpoint)
        self._tell(f"a run that got SIGTERM at step {step} ended {seconds:.1f} s later, exit code {code}")
        self.end()

    def _undisturbed(self) -> None:
        self._begin("undisturbed", self._steps)
        began_s, first = self._first_step("anything")
        while (code := self._code()) is None:
            self._rest()
            self._measure(began_s, first)
        command = self._running()
        result = command.result()
        if code != 0:
            raise _failed(command, code)
        self.seen.digest = result["state_digest"]
        seconds = time.monotonic() - command.began_s
        rate = f"{result['steps_per_s']:.0f} steps/s" if result["steps_per_s"] else ""
        self._tell(f"undisturbed: {result['step']} steps in {seconds:.1f} s, {rate}")
        self.end()

    def _disturbed(self) -> None:
        self._commands_before = self._commands
        self._begin("disturbed", self._steps)
        watch = self._running_watch()
        self.seen.trace, self.seen.setbacks, self.seen.stale = watch.trace, watch.setbacks, watch.stale
        try:
            self._first_step("a fault")
            for fault in self._plan.faults():
                if not self._wait(fault.wait_s) or not self._deliver(fault):
                    break
                if len(self.seen.faults) == self._plan.count:
                    break
            while self._wait(1.0):
                pass
        except InfrastructureError as error:
            self.seen.error = str(error)
        self._conclude()
        self.end()

    def _conclude(self) -> None:
        """What the disturbed run says of itself, and its checkpoints against those of the undisturbed one."""
        seen, command = self.seen, self._running()
        result = command.result()
        seen.commands = self._commands - self._commands_before
        seen.steps = self._running_watch().step
        self._note_restores(command)
        if seen.error is None and result.get("status") != "done":
            seen.error = result.get("error") or last_line(command.said()) or "no result"
        seen.disturbed_digest = result.get("state_digest")
        seen.steps_lost = int(result.get("steps_lost", 0))
        self._verify("at the end")
        ours, theirs = (_digests(self._url_of(name)) for name in ("disturbed", "undisturbed"))
        seen.compared = [(step, ours[step] == theirs[step]) for step in sorted(ours.keys() & theirs.keys())]
        if missing := {
            kind for kind in self._plan.kinds if kind not in {fault.kind for fault in seen.faults}
        }:
            if seen.error is None:
                raise self._too_short(
                    f"ended before all was delivered ({', '.join(sorted(missing))} was not)"
                )
        elif self._plan.count is not None and len(seen.faults) < self._plan.count and seen.error is None:
            raise self._too_short(f"ended after {len(seen.faults)} of {self._plan.count} faults")

    # -- a run under way ----------------------------------------------------------------------------------

    def _url_of(self, name: str) -> str:
        where = self._request.run_dir
        return f"{where.rstrip('/')}/{name}" if where is not None else str(self._scratch / name)

    def _begin(self, name: str, steps: int, *more: str) -> None:
        self._url = self._url_of(name)
        self._watch = Watch(self._url, steps)
        self._watch.start()
        self._words = self._request.command(self._url, steps, *more)
        self._start()

    def _start(self) -> None:
        self._commands += 1
        self._command = _Command(self._words, self._scratch / f"command-{self._commands:03}")
        self._stepped = (time.monotonic(), self._running_watch().step)

    def _running(self) -> _Command:
        assert self._command is not None
        return self._command

    def _running_watch(self) -> Watch:
        assert self._watch is not None
        return self._watch

    def _code(self) -> int | None:
        return self._running().code()

    def _at_work(self, code: int | None = None) -> bool:
        """Whether there are steps to be made, by a command that has not ended."""
        return self._code() == code and self._running_watch().step < self._steps

    def _rest(self) -> None:
        """Wait a moment; workers whose time has come go on. Raises InfrastructureError if the run hangs."""
        time.sleep(POLL_S)
        now = time.monotonic()
        for when, member in self._continue:
            if when <= now:
                member.send(signal.SIGCONT)
        self._continue = [(when, member) for when, member in self._continue if when > now]
        if (step := self._running_watch().step) != self._stepped[1]:
            self._stepped = (now, step)
        if now - self._stepped[0] > STALL_S:
            last = f": {self.seen.faults[-1].text}" if self.seen.faults else ""
            raise InfrastructureError(f"no step for {STALL_S:.0f} s after step {step}{last}")

    def _wait(self, seconds: float) -> bool:
        """Wait, giving the same command again if that is what its end asks for; False after the last end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until or self._code() is not None:
            code = self._code()
            if code is None:
                self._rest()
                continue
            if code != 75 or not self._again():
                return False
        return True

    def _again(self) -> bool:
        """The same command again, unless it was given in vain too often."""
        command, watch = self._running(), self._running_watch()
        self._tries = 0 if watch.step > self._fruitful else self._tries + 1
        self._fruitful = watch.step
        self._note_restores(command)
        if self._tries >= FRUITLESS:
            return False
        self._tell("exit code 75: the same command again")
        self._start()
        return True

    def _first_step(self, what: str) -> tuple[float, int]:
        """When the run's first steps were made, and how many."""
        watch = self._running_watch()
        while watch.step < 1:
            if (code := self._code()) is not None:
                if code == 0:
                    raise self._too_short(f"ended before {what} could be delivered")
                raise _failed(self._running(), code)
            self._rest()
        return time.monotonic(), watch.step

    def _measure(self, began_s: float, first: int) -> None:
        seconds = time.monotonic() - began_s
        if self._code() is None and seconds > 0.1:
            self._rate = (self._running_watch().step - first) / seconds

    def _too_short(self, what: str) -> _TooShort:
        trace = self._running_watch().trace
        seconds = trace[-1][0] - trace[0][0] if trace else 0.0
        rate = self._rate or (trace[-1][1] - trace[0][1]) / max(seconds, 0.1) if trace else 0.0
        steps = self._plan.steps(rate)
        if self._request.steps is not None:
            steps = max(steps, 2 * self._request.steps)
        return _TooShort(f"the job is too short to be disturbed so: it {what}: give --steps {steps} or more")

    def _note_restores(self, command: _Command) -> None:
        """Checkpoints that the command went on from. The first attempt after the loss of everything may."""
        for i, line in enumerate(
            re.findall(r"^going on from the checkpoint of step .*", command.said(), re.M)
        ):
            self.seen.restores.append((line, i > 0 or not self._lost_all))

    @property
    def _lost_all(self) -> bool:
        return any(fault.kind == "all" for fault in self.seen.faults)

    # -- faults -------------------------------------------------------------------------------------------

    def _deliver(self, fault: Fault) -> bool:
        """Strike as soon as there is whom the fault can strike; False if the run ended or nobody came."""
        strike = {"node": self._strike_node, "all": self._strike_all}.get(fault.kind, self._strike_one)
        deadline = time.monotonic() + TARGET_S
        while self._at_work() and time.monotonic() < deadline:
            if (delivered := strike(fault)) is not None:
                self.seen.faults.append(delivered)
                self._tell(f"step {delivered.step}: {delivered.text}")
                return True
            self._rest()
        return self._wait(0)

    def _members(self) -> list[Member]:
        """The processes of the run on this machine, wherever they descend from."""
        found = members(self._running().pid)
        return [*found, *self._others({member.process.pid for member in found})]

    def _others(self, known: set[int] | None = None) -> list[Member]:
        """Actors of a Ray that was there before: only the memories name them."""
        if self._request.runtime != "ray" or self._watch is None or self._command is None:
            return []
        found = []
        for process in {p for each in self._watch.processes().values() for p in each}:
            if process.pid not in (known or set()) and is_alive(process):
                member = member_of(process.pid, self._command.pid)
                if member is not None and member.role in ("agent", "worker", "writer"):
                    found.append(member)
        return found

    def _strike_one(self, fault: Fault) -> Delivered | None:
        role = "worker" if fault.kind == "stop" else fault.kind
        held = {member for _, member in self._continue}
        there = sorted(
            (m for m in self._members() if m.role == role and m not in held),
            key=lambda m: (m.node or 0, m.rank or 0, m.process.pid),
        )
        if not there:
            return None
        victim = there[int(fault.pick * len(there))]
        at_s = time.monotonic()
        if not victim.send(signal.SIGSTOP if fault.kind == "stop" else signal.SIGKILL):
            return None
        step = self._running_watch().step_now()
        if fault.kind == "stop":
            self._continue.append((at_s + fault.hold_s, victim))
        did = f"stopped for {fault.hold_s:.1f} s" if fault.kind == "stop" else "killed"
        return Delivered(fault.kind, at_s, step, (role,), f"{victim} {did}")

    def _strike_node(self, fault: Fault) -> Delivered | None:
        """A node may only be lost while another one holds the state: else there is nothing to be kept."""
        watch = self._running_watch()
        there = self._by_node()
        able = [node for node in sorted(there) if watch.others_hold_the_state(node)]
        if len(there) < 2 or not able:
            return None
        node = able[int(fault.pick * len(able))]
        at_s = time.monotonic()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            struck = [member for member in there[node] if member.send(number)]
        step = watch.step_now()
        watch.forget_memory(node)
        text = f"node {node} lost, {len(struck)} processes and its memory"
        return Delivered("node", at_s, step, tuple(member.role for member in struck), text)

    def _by_node(self) -> dict[int, list[Member]]:
        """The processes of each node that has an agent and a memory."""
        supervisor = self._running().pid
        if self._request.runtime == "process":
            found: dict[int, list[Member]] = {}
            for each in self._members():
                if each.node is not None:
                    found.setdefault(each.node, []).append(each)
        else:
            found = {
                int(path.rpartition(".")[2]) if re.search(r"\.\d+$", path) else 0: [
                    member
                    for process in processes
                    if is_alive(process) and (member := member_of(process.pid, supervisor)) is not None
                ]
                for path, processes in self._running_watch().processes().items()
            }
        return {node: there for node, there in found.items() if any(m.role == "agent" for m in there)}

    def _strike_all(self, fault: Fault) -> Delivered | None:
        """Kill everything, see that the latest checkpoint is good, and give the same command again."""
        command = self._running()
        killed = kill_all(command.pid, self._others())
        self._continue = []
        self._note_restores(command)
        command.code()
        self._verify("after everything was killed")
        self._start()
        text = f"everything killed ({len(killed)} processes), and the same command given again"
        # What it took to verify is not part of the recovery, which begins with the command.
        roles = tuple(member.role for member in killed)
        return Delivered("all", time.monotonic(), self._running_watch().step_now(), roles, text)

    def _verify(self, when: str) -> None:
        run = RunDirectory(open_store(self._url))
        name = f"the latest checkpoint {when}"
        try:
            entry = run.latest()
            if entry is None:
                return
            faults = verify_checkpoint(run.store, entry.directory, read_data=True).faults
        except HoldfastError as error:
            self.seen.verified.append((name, str(error)))
        else:
            wrong = "; ".join(str(fault) for fault in faults) or None
            self.seen.verified.append((f"{entry.directory} {when}", wrong))


def _failed(command: _Command, code: int) -> HoldfastError:
    """Why an undisturbed run did not get to its end, as an error of its own exit code."""
    said = command.said().replace("holdfast: error: ", "").strip() or f"exit code {code}"
    kinds: dict[int, type[HoldfastError]] = {1: UserCodeError, 2: ConfigurationError}
    return kinds.get(code, InfrastructureError)(f"{said} (undisturbed)")


def _digests(url: str) -> dict[int, str]:
    """The state digest of each complete checkpoint of a run, by step."""
    entries = RunDirectory(open_store(url)).entries()
    whole = [each for each in entries if each.status in ("latest", "complete") and each.manifest is not None]
    return {each.step: each.manifest.state_digest for each in whole if each.manifest is not None}


def run_chaos(request: Request, tell: Callable[[str], None]) -> Report:
    """Run a job undisturbed and disturbed. What there was of it is removed if everything holds.

    Raises HoldfastError if the job cannot be run at all. Whatever ends this ends what it has started.
    """
    if request.run_dir is not None:
        for name in ("stopped", "undisturbed", "disturbed"):
            run = RunDirectory(open_store(f"{request.run_dir.rstrip('/')}/{name}"))
            if run.identity() is not None or run.newest_beat() is not None:
                raise ConfigurationError(f"{run.store.url} holds a run: give another --run-dir")
    scratch = Path(tempfile.mkdtemp(prefix="holdfast-chaos-"))
    kept = False
    try:
        campaign = Campaign(request, scratch, tell)
        too_short = campaign.run()
        report = Report(plan=request.plan, run_dir=None, repeat=request.repeat, seen=campaign.seen)
        report = replace(report, too_short=too_short)
        kept = not report.holds and campaign.seen.digest is not None
        where = request.run_dir or (str(scratch) if kept else None)
        return replace(report, run_dir=where)
    finally:
        if not kept:
            shutil.rmtree(scratch, ignore_errors=True)
