"""Runs conversions with one fault each, in a process with failing_calls.so preloaded.

A task (JSON on stdin) says what to convert and which calls to fail; each line of stdout is what one
run did: the call that met the fault, how the run ended, and what the folder then held.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import phiquant as pq

#: The fixture ``faulty_runs``: (kind, ...) to what each run did.
Runs = Callable[..., list[dict[str, Any]]]

OLD = b"what stood here before"
MODES = {
    name: number
    for number, name in enumerate(
        ("errno", "short", "zero", "kill_before", "kill_after", "signal", "resize"), start=1
    )
}


class Shim:
    """The preloaded library's controls."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.failing_calls_hit.restype = ctypes.c_char_p
        self._library.failing_calls_arm.argtypes = [
            ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_long, ctypes.c_char_p,
        ]  # fmt: skip

    def arm(self, task: dict[str, Any], count: int) -> None:
        """Make the ``count``-th call meet the task's fault."""
        self._library.failing_calls_without(",".join(task.get("without", [])).encode())
        self._library.failing_calls_arm(
            ",".join(task["calls"]).encode(),
            count,
            MODES[task["mode"]],
            task.get("value", 0),
            task.get("victim", "").encode(),
        )

    def disarm(self) -> str:
        """Stop counting; the call that met the fault, if any."""
        hit: bytes = self._library.failing_calls_hit()
        text = hit.decode()
        self._library.failing_calls_arm(b"", 0, 0, 0, b"")
        return text


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file by its path in the folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


class Job:
    """A planned conversion, and the folder for its results."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.source = Path(task["source"])
        self.folder = Path(task["folder"])
        self.overwrite: bool = task.get("overwrite", False)
        self.companions: bool = task.get("companions", False)
        self.threads: int = task.get("threads", 1)
        self.plan = pq.plan(self.source, task["to"])
        self.names = [
            place.as_posix()
            for target in self.plan.targets
            for place in target.places(Path(target.name))
        ]
        if self.companions:
            self.names.append("Modelfile")

    def prepare(self) -> None:
        """An empty folder, or one with older results."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        if self.overwrite:
            for name in self.names:
                (self.folder / name).parent.mkdir(exist_ok=True)
                (self.folder / name).write_bytes(OLD)

    def run(self) -> dict[str, Any]:
        """Convert, and tell how it ended."""
        try:
            self.plan.run(
                f"{self.folder}/",
                overwrite=self.overwrite,
                companions=self.companions,
                threads=self.threads,
            )
        except pq.PhiquantError as error:
            return error.to_json()
        except KeyboardInterrupt:
            return {"error": "KeyboardInterrupt"}
        return {"error": None}


def say(line: dict[str, Any]) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(line), flush=True)


def every_call(task: dict[str, Any], shim: Shim) -> None:
    """One run for each k, until one ends without meeting the fault."""
    job = Job(task)
    for count in range(1, 10_000):
        job.prepare()
        shim.arm(task, count)
        end = job.run()
        hit = shim.disarm()
        say({"call": hit, **end, "folder": contents(job.folder)})
        if not hit:
            return


def first_call(task: dict[str, Any], shim: Shim) -> None:
    """One run, whose first call meets the fault."""
    job = Job(task)
    job.prepare()
    shim.arm(task, 1)
    end = job.run()
    say({"call": shim.disarm(), **end, "folder": contents(job.folder)})


def killed_at_every_call(task: dict[str, Any], shim: Shim) -> None:
    """As every_call, where the fault is a kill: each run in a process of its own."""
    job = Job(task)
    for count in range(1, 10_000):
        job.prepare()
        child = os.fork()
        if child == 0:
            shim.arm(task, count)
            end = job.run()
            os._exit(0 if end["error"] is None else 1)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        after_kill = contents(job.folder)
        after_next_run = None
        if killed:
            job.overwrite = True
            end = job.run()
            job.overwrite = task.get("overwrite", False)
            after_next_run = contents(job.folder)
        else:
            end = {"error": None if status == 0 else f"status {status}"}
        say({"killed": killed, **end, "folder": after_kill, "next": after_next_run})
        if not killed:
            return


def killed_at_random(task: dict[str, Any], shim: Shim) -> None:
    """Runs in one folder, one after the other, each killed after a random time; then one whole."""
    del shim
    job = Job(task)
    chance = random.Random(task["seed"])
    job.prepare()
    start = time.monotonic()
    job.run()
    # Late enough that some runs end before they are killed.
    longest = 2 * (time.monotonic() - start)
    job.prepare()
    for _ in range(task["kills"]):
        child = os.fork()
        if child == 0:
            job.overwrite = True
            job.threads = 2
            end = job.run()
            os._exit(0 if end["error"] is None else 1)
        time.sleep(chance.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        say({"status": status, "folder": contents(job.folder)})
        if not job.overwrite:
            for name in {Path(name).parts[0] for name in job.names}:
                place = job.folder / name
                shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    job.overwrite = True
    say({**job.run(), "folder": contents(job.folder)})


def two_writers(task: dict[str, Any], shim: Shim) -> None:
    """Two processes that write one target at the same time, again and again."""
    del shim
    job = Job(task)
    for _ in range(task["rounds"]):
        job.prepare()
        writers = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                end = job.run()
                os._exit(end.get("exit_code", 0))
            writers.append(child)
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in writers)
        say({"codes": codes, "folder": contents(job.folder)})


def two_different_writers(task: dict[str, Any], shim: Shim) -> None:
    """As two_writers, of two models with the same name; now one begins first, now the other."""
    del shim
    jobs = [Job(task), Job({**task, "source": task["other"]})]
    chance = random.Random(task["seed"])
    start = time.monotonic()
    for job in jobs:
        job.prepare()
        job.run()
    longest = (time.monotonic() - start) / 2
    for number in range(task["rounds"]):
        jobs[0].prepare()
        writers = {}
        for index in (0, 1) if number % 2 else (1, 0):
            child = os.fork()
            if child == 0:
                end = jobs[index].run()
                os._exit(end.get("exit_code", 0))
            writers[index] = child
            time.sleep(chance.uniform(0, longest))
        codes = [os.waitstatus_to_exitcode(os.waitpid(writers[i], 0)[1]) for i in (0, 1)]
        say({"codes": codes, "folder": contents(jobs[0].folder)})


def main() -> None:
    task = json.load(sys.stdin)
    {
        "every_call": every_call,
        "first_call": first_call,
        "killed_at_every_call": killed_at_every_call,
        "killed_at_random": killed_at_random,
        "two_writers": two_writers,
        "two_different_writers": two_different_writers,
    }[task["kind"]](task, Shim())


if __name__ == "__main__":
    main()
