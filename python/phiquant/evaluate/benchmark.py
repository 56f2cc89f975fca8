"""Benchmarks: outputs in their own runtimes, each in a process of its own, side by side."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from phiquant import errors
from phiquant.errors import FormatError, IoError, PhiquantError, UsageError
from phiquant.evaluate.processors import choose, machine
from phiquant.measure.bar import Bar
from phiquant.runtimes import runtime_of
from phiquant.texts import bytes_text, table

# The child imports what this process would, and nothing from the current folder.
_CHILD = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from phiquant.evaluate.benchmark_child import main; main()"
)


@dataclass(frozen=True)
class Speed:
    """Tokens per second.

    Attributes
    ----------
    median, least, most : float
    runs : tuple of float
        Each repeat, in order.
    """

    median: float
    least: float
    most: float
    runs: tuple[float, ...]

    def __str__(self) -> str:
        return f"{_speed(self.median)} ({_speed(self.least)} to {_speed(self.most)})"


@dataclass(frozen=True)
class Measured:
    """What one output does in its runtime.

    Attributes
    ----------
    output : str
    runtime : str
        With its version.
    load_seconds : float
        Until the model is ready, its files as warm as the system's cache has them.
    resident_before, resident_loaded, resident_peak : int or None
        Bytes of physical memory of the whole process: with the runtime imported, with the model
        loaded, and at most. None where the system does not tell.
    kv_bytes_per_token : int or None
        Bytes of keys and values; None where the runtime does not tell.
    prompt, decode : Speed
    """

    output: str
    runtime: str
    load_seconds: float
    resident_before: int | None
    resident_loaded: int | None
    resident_peak: int | None
    kv_bytes_per_token: int | None
    prompt: Speed
    decode: Speed


@dataclass(frozen=True, repr=False)
class Benchmark:
    """Outputs side by side.

    Attributes
    ----------
    machine : str
        Name of the processor, system, instruction set.
    threads : int
    processors : tuple of int or None
        Those that the threads were kept on; None where the system lets nobody choose.
    prompt_tokens, decode_tokens : int
    warmup, repeats : int
        Runs that do not count, and runs that do.
    outputs : tuple of Measured
        In the order given.
    """

    machine: str
    threads: int
    processors: tuple[int, ...] | None
    prompt_tokens: int
    decode_tokens: int
    warmup: int
    repeats: int
    outputs: tuple[Measured, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            (
                one.output,
                one.runtime,
                f"{one.load_seconds:.2f} s",
                _bytes(one.resident_loaded),
                _bytes(one.resident_peak),
                str(one.prompt),
                str(one.decode),
                _bytes(one.kv_bytes_per_token),
            )
            for one in self.outputs
        ]
        head = (
            *("output", "runtime", "load", "memory", "peak"),
            *("prompt tokens/s", "decode tokens/s", "KV/token"),
        )
        return f"{self.conditions}\n" + table(head, rows, "llrrrrrr")

    @property
    def conditions(self) -> str:
        """How it was measured, in words."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        place = "not pinned"
        if self.processors is not None:
            many = "processor" if len(self.processors) == 1 else "processors"
            place = f"pinned to {many} {', '.join(map(str, self.processors))}"
        return (
            f"{self.machine}, {threads}, {place}; a prompt of {self.prompt_tokens} tokens and "
            f"{self.decode_tokens} decoded after it; warm-up: {self.warmup}, then the median "
            f"(least to most) of {self.repeats}"
        )

    __repr__ = __str__


def bench(
    outputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    prompt: int = 512,
    decode: int = 128,
    warmup: int = 1,
    repeats: int = 5,
    threads: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Benchmark:
    """Run outputs in their own runtimes: load time, memory, speed, and size of the KV cache.

    Each runs in a process of its own, kept on as many processors as it has threads, one after the
    other. A run reads a prompt of random tokens (the same in all runs), and then decodes greedily;
    choosing the most likely token is part of the time, and cutting text into tokens is not.

    Parameters
    ----------
    outputs : str or path, or a sequence of them
        What a runtime of :mod:`phiquant.runtimes` runs.
    prompt, decode : int
        Tokens to read, and tokens to decode after them.
    warmup, repeats : int
        Runs that do not count, and runs that do.
    threads : int, optional
        One a core by default.
    progress : bool or callable
        True shows a bar; a function is called with tokens done and tokens in all.

    Raises
    ------
    phiquant.UsageError
        A number that makes no sense, or more tokens than a model is made for.
    phiquant.UnsupportedError
        No runtime runs an output, or it is not installed.
    phiquant.FormatError
        A runtime refuses an output, or crashes over it.
    phiquant.IoError
        An output is missing, or the system ended the process: memory ran out.
    """
    listed = [outputs] if isinstance(outputs, (str, os.PathLike)) else list(outputs)
    if not listed:
        raise UsageError("there is no output to run")
    for name, value, least in (
        ("prompt", prompt, 1),
        ("decode", decode, 1),
        ("warmup", warmup, 0),
        ("repeats", repeats, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{name} must be a number from {least} on, not {value!r}")
    count, processors = choose(threads)
    for path in map(Path, listed):
        runtime_of(path).require()  # before the first one takes its time
    tokens = (warmup + repeats) * (prompt + decode)
    measured = []
    with Bar(progress, len(listed) * tokens, about="running", unit="tok", begin=0) as watch:
        for index, path in enumerate(map(Path, listed)):
            job = {
                "path": str(path),
                "threads": count,
                "processors": processors,
                "prompt": prompt,
                "decode": decode,
                "warmup": warmup,
                "repeats": repeats,
            }
            first = index * tokens
            found = _run(path, job, partial(lambda first, done: watch(first + done), first))
            watch(first + tokens)
            reading, steps = _summary(found.pop("prompt")), _summary(found.pop("decode"))
            measured.append(Measured(str(path), prompt=reading, decode=steps, **found))
    return Benchmark(
        machine=machine(),
        threads=count,
        processors=processors,
        prompt_tokens=prompt,
        decode_tokens=decode,
        warmup=warmup,
        repeats=repeats,
        outputs=tuple(measured),
    )


def _run(path: Path, job: dict[str, Any], report: Callable[[int], None]) -> dict[str, Any]:
    """The result of one output's process."""
    with tempfile.TemporaryFile() as words:
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            encoding="utf-8",
        )
        assert child.stdin is not None and child.stdout is not None
        try:
            try:
                with child.stdin:
                    child.stdin.write(json.dumps(job))
            except BrokenPipeError:
                pass  # it died at once: its words say why
            last: dict[str, Any] = {}
            for line in child.stdout:
                last = json.loads(line)
                if "done" in last:
                    report(last["done"])
            code = child.wait()
        finally:  # Ctrl-C, too
            child.kill()
            child.wait()
            child.stdout.close()
        if "error" in last:
            raise _error(last["error"])
        if "result" not in last:
            raise _crash(path, code, words)
        result: dict[str, Any] = last["result"]
        return result


def _error(facts: dict[str, Any]) -> PhiquantError:
    kind = getattr(errors, facts["error"])
    error: PhiquantError = kind(
        facts["cause"], file=facts["file"], tensor=facts["tensor"], remedy=facts["remedy"]
    )
    return error


def _crash(path: Path, code: int, words: IO[bytes]) -> PhiquantError:
    name = runtime_of(path).name
    if code == -getattr(signal, "SIGKILL", 9):
        return IoError(
            f"{name} was killed by the system: memory ran out",
            file=path,
            remedy="Choose a smaller output, or fewer tokens: --prompt 128 (prompt=128).",
        )
    words.seek(0)
    said = " ".join(words.read().decode("utf-8", "replace").split())[-400:]
    end = f"exit code {code}" if code >= 0 else _signal(-code)
    return FormatError(f"{name} crashes over it ({end}){': ' if said else ''}{said}", file=path)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _summary(runs: Sequence[float]) -> Speed:
    return Speed(statistics.median(runs), min(runs), max(runs), tuple(runs))


def _speed(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else bytes_text(count)
