"""What runs in a benchmark's child process: one output, loaded, warmed up and timed.

A job comes as JSON on standard input; lines of JSON go to standard output: ``done`` (tokens so
far), and at the end ``result`` or ``error``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from phiquant.errors import InternalError, PhiquantError, UsageError
from phiquant.evaluate.processors import pin, resident
from phiquant.runtimes import LoadedModel, runtime_of

# Seconds between two reports of progress.
_INTERVAL = 0.5


def main() -> None:
    """Do the job on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    # Runtimes print what they like: our own lines go where nobody else writes.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def say(line: dict[str, Any]) -> None:
            out.write(json.dumps(line) + "\n")
            out.flush()

        try:
            say({"result": _work(json.loads(sys.stdin.read()), say)})
        except PhiquantError as error:
            say({"error": error.to_json()})
        except BrokenPipeError:  # the parent is gone
            os._exit(1)
        except Exception as error:
            say({"error": InternalError(f"{type(error).__name__}: {error}").to_json()})


def _work(job: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    pin(job["processors"])
    path = Path(job["path"])
    prompt, decode = job["prompt"], job["decode"]
    runtime = runtime_of(path)
    version = runtime.version()  # imports it, which is no part of loading a model
    before, _ = resident()
    begin = time.perf_counter()
    with runtime.load(path, context=prompt + decode, threads=job["threads"], exact=False) as model:
        load = time.perf_counter() - begin
        loaded, _ = resident()
        if model.longest is not None and prompt + decode > model.longest:
            raise UsageError(
                f"a prompt of {prompt} tokens and {decode} more are too many: the model is made "
                f"for {model.longest}",
                file=path,
            )
        ids = np.random.default_rng(0).integers(0, model.vocabulary, prompt)
        clock = _Clock(say)
        runs = [clock.run(model, ids, decode) for _ in range(job["warmup"] + job["repeats"])]
        kept = runs[job["warmup"] :]
        return {
            "runtime": version,
            "load_seconds": load,
            "resident_before": before,
            "resident_loaded": loaded,
            "resident_peak": resident()[1],
            "kv_bytes_per_token": model.kv_bytes_per_token,
            "prompt": [prompt / seconds for seconds, _ in kept],
            "decode": [decode / seconds for _, seconds in kept],
        }


class _Clock:
    """Times runs, and reports tokens between the times."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say
        self._done = 0
        self._last = time.perf_counter()

    def run(self, model: LoadedModel, ids: Any, decode: int) -> tuple[float, float]:
        """Seconds for the prompt and for all steps after it."""
        begin = time.perf_counter()
        token = model.start(ids)
        reading = time.perf_counter() - begin
        self._add(len(ids))
        steps = 0.0
        for _ in range(decode):
            begin = time.perf_counter()
            token = model.step(token)
            steps += time.perf_counter() - begin
            self._add(1)
        return reading, steps

    def _add(self, tokens: int) -> None:
        self._done += tokens
        now = time.perf_counter()
        if now - self._last >= _INTERVAL:
            self._last = now
            self._say({"done": self._done})
