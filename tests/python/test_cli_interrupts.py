"""Ctrl-C and other ends, on pipes and on a real terminal: nothing is left, and progress is shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_process import OnTerminal, environment

import child_signals
import phiquant as pq
from phiquant.cli.entry import run
from phiquant.cli.progress import INTERVAL, Lines
from phiquant.cli.terminal import Words

TESTS = Path(__file__).parents[1]
PHI3WIN = TESTS / "data" / "phi3win"

# The command line with a progress callback that sends its own process a signal.
_SIGNALLED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import phiquant.cli.convert as convert
number = int(sys.argv.pop(1))
convert.watcher = lambda words: lambda done, total: os.kill(os.getpid(), number)
from phiquant.cli import main
main()
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of Phi-3.5-mini's own shape: enough to be in the midst of it."""
    folder = tmp_path_factory.mktemp("large") / "model"
    make = TESTS / "benchmarks" / "make_full_size.py"
    subprocess.run(
        [sys.executable, make, folder, "--layers", "2", "--tokenizer-from", TESTS / "data/phi35"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder


def signalled(number: int, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _SIGNALLED, str(int(number)), "convert", str(PHI3WIN), *args],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=child_signals.heed,
    )


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "interrupted; nothing was written"),
        (signal.SIGTERM, 143, "ended by SIGTERM; nothing was written"),
        (signal.SIGHUP, 129, "ended by SIGHUP; nothing was written"),
    ],
)
def test_a_signal_ends_a_run_and_leaves_nothing(
    tmp_path: Path, number: int, code: int, words: str
) -> None:
    done = signalled(number, "--to", "q4_k_m", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"phiquant: {words}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old_result(tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    target.write_text("old")
    done = signalled(
        signal.SIGINT, "--to", "q8_0", "-o", "x.gguf", "--overwrite", "--json", cwd=tmp_path
    )
    assert done.returncode == json.loads(done.stdout)["exit_code"] == 130
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_ctrl_c_on_a_terminal_in_the_midst_of_a_large_model(large: Path, tmp_path: Path) -> None:
    terminal = OnTerminal("convert", large, "--to", "q4_k_m", "--threads", "1", cwd=tmp_path)
    terminal.wait_for("converting:")
    terminal.type("\x03")
    pressed = time.monotonic()
    assert terminal.end() == 130
    # The claim of issue and documentation is a second; a loaded machine may take a little more.
    assert time.monotonic() - pressed < 5
    assert terminal.shown.rstrip().endswith("interrupted; nothing was written")
    assert "Traceback" not in terminal.shown
    assert list(tmp_path.iterdir()) == []


def test_a_bar_is_shown_on_a_terminal_and_gone_at_the_end(large: Path, tmp_path: Path) -> None:
    terminal = OnTerminal("convert", large, "--to", "q4_k_m", "--threads", "1", cwd=tmp_path)
    assert terminal.end() == 0
    assert "converting:" in terminal.shown
    last = [line.rpartition("\r")[2] for line in terminal.shown.replace("\r\n", "\n").split("\n")]
    assert not any("converting" in line for line in last)
    assert "Run it: " in terminal.shown


def test_short_runs_show_no_bar(tmp_path: Path) -> None:
    terminal = OnTerminal("convert", PHI3WIN, "--to", "q8_0", cwd=tmp_path)
    assert terminal.end() == 0
    assert "converting" not in terminal.shown


def test_quiet_is_quiet_on_a_terminal_too(tmp_path: Path) -> None:
    terminal = OnTerminal("convert", PHI3WIN, "--to", "q4_k_m", "-q", cwd=tmp_path)
    assert terminal.end() == 0
    assert terminal.shown == "phi3win-q4_k_m.gguf\r\n"


def test_ctrl_c_after_the_result_has_its_name_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = pq.Plan.run

    def run_and_interrupt(self: pq.Plan, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(pq.Plan, "run", run_and_interrupt)
    monkeypatch.setattr("phiquant.cli.entry._hear_no_more", lambda number: None)
    target = tmp_path / "x.gguf"
    assert run(["convert", str(PHI3WIN), "--to", "q8_0", "-o", str(target)]) == 130
    assert capsys.readouterr().err == f"phiquant: interrupted; {target} had been written\n"
    assert target.exists()


def test_logs_get_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 1.0, INTERVAL, INTERVAL + 1, 2 * INTERVAL])
    lines = Lines(Words(), clock=lambda: next(times))
    for done in (10, 250, 260, 1000):
        lines(done * 10**6, 1000 * 10**6)
    assert capsys.readouterr().err.splitlines() == [
        "phiquant: 25%, 250.00 MB of 1.00 GB read, about 30 s to go",
        "phiquant: all is encoded; syncing to disk",
    ]


def test_a_run_goes_on_when_nobody_reads_its_words(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "phiquant", "convert", str(PHI3WIN), "--to", "q8_0"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=write,
        timeout=120,
    )
    os.close(write)
    assert (done.returncode, done.stdout) == (0, b"phi3win-q8_0.gguf\n")
