"""The fault-injecting library, and runs of conversions under it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_runs import Runs

import child_signals
from tiny_model import write_model

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """failing_calls.cpp as a library to preload."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    assert compiler, "the crash tests need a C++ compiler: apt install g++"
    library = tmp_path_factory.mktemp("shim") / "failing_calls.so"
    source = HERE / "failing_calls.cpp"
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library), "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 3 MB."""
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def faulty_runs(shim: Path, model: Path, tmp_path: Path) -> Runs:
    """faulty_runs(kind, ...) gives what each run did; see faulty_runs.py."""

    def run(kind: str, **task: Any) -> list[dict[str, Any]]:
        task = {"kind": kind, "source": str(model), "folder": str(tmp_path / "out"), **task}
        done = subprocess.run(
            [sys.executable, str(HERE / "faulty_runs.py")],
            input=json.dumps(task),
            # The registry is told apart: it may fail without a word from the run.
            env={**os.environ, "LD_PRELOAD": str(shim), "PHIQUANT_REGISTRY": "off"},
            capture_output=True,
            text=True,
            timeout=300,
            preexec_fn=child_signals.heed,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run
