"""Whatever system call fails, a run ends with a typed error and the targets are as they were."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_runs import MODES, OLD, Runs, contents

import child_signals
import phiquant as pq

CALLS = ["open", "fallocate", "ftruncate", "pwrite", "sync_wait", "fsync", "link", "rename"]
OLD_DIGEST = hashlib.sha256(OLD).hexdigest()

SCENARIOS: dict[str, dict[str, Any]] = {
    "one-new": {"to": ["q4_k_m"], "companions": True},
    "one-overwritten": {"to": ["q4_k_m"], "companions": True, "overwrite": True},
    "two-new": {"to": ["q4_k_m", "q8_0"]},
    "two-overwritten": {"to": ["q4_k_m", "q8_0"], "overwrite": True},
}
# What FAT and some network file systems lack.
BARE = ["fallocate", "link", "sync_wait", "sync_start"]


@pytest.fixture(scope="session")
def sound(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what undisturbed runs write, by name."""
    folder = tmp_path_factory.mktemp("sound")
    pq.convert(model, ["q4_k_m"], folder, companions=True)
    pq.convert(model, ["q8_0"], folder)
    return contents(folder)


def names_of(scenario: dict[str, Any]) -> list[str]:
    names = [f"tiny-{preset}.gguf" for preset in scenario["to"]]
    return [*names, "Modelfile"] if scenario.get("companions") else names


def before(scenario: dict[str, Any]) -> dict[str, str]:
    return dict.fromkeys(names_of(scenario), OLD_DIGEST) if scenario.get("overwrite") else {}


def check_whole(run: dict[str, Any], scenario: dict[str, Any], sound: dict[str, str]) -> None:
    assert run["error"] is None, run
    assert run["folder"] == {name: sound[name] for name in names_of(scenario)}, run


@pytest.mark.parametrize(
    ("scenario", "error"),
    [*((name, error) for name in SCENARIOS for error in ("ENOSPC", "EIO")), ("one-new", "EDQUOT")],
)
def test_a_failing_call_is_an_error_and_changes_nothing(
    scenario: str, error: str, faulty_runs: Runs, model: Path, sound: dict[str, str]
) -> None:
    source = contents(model)
    told = SCENARIOS[scenario]
    runs = faulty_runs("every_call", calls=CALLS, mode="errno", value=getattr(errno, error), **told)
    for run in runs[:-1]:
        assert run["error"] == "IoError", run
        assert run["exit_code"] == 4, run
        assert Path(run["file"]).name in names_of(told), run
        assert run["cause"], run
        assert run["remedy"], run
        assert run["folder"] == before(told), run
    check_whole(runs[-1], told, sound)
    # Every kind of call was met: the shim sees what it is meant to see.
    expected = {"open", "fallocate", "pwrite", "sync_wait", "fsync", "link"}
    expected |= {"rename"} if told.get("overwrite") else set()
    assert {run["call"] for run in runs[:-1]} == expected
    assert contents(model) == source


@pytest.mark.parametrize("scenario", ["one-new", "two-new"])
def test_a_failing_call_on_a_bare_file_system_changes_nothing(
    scenario: str, faulty_runs: Runs, sound: dict[str, str]
) -> None:
    told = SCENARIOS[scenario]
    runs = faulty_runs(
        "every_call", calls=CALLS, mode="errno", value=errno.EIO, without=BARE, **told
    )
    for run in runs[:-1]:
        assert (run["error"], run["folder"]) == ("IoError", {}), run
    check_whole(runs[-1], told, sound)
    assert {run["call"] for run in runs[:-1]} >= {"open", "ftruncate", "pwrite", "fsync", "rename"}


@pytest.mark.parametrize("scenario", ["one-overwritten", "two-overwritten"])
def test_a_bare_file_system_can_be_overwritten(
    scenario: str, faulty_runs: Runs, sound: dict[str, str]
) -> None:
    told = SCENARIOS[scenario]
    runs = faulty_runs("every_call", calls=["none"], mode="errno", without=BARE, **told)
    check_whole(runs[0], told, sound)


@pytest.mark.parametrize("scenario", ["one-new", "two-overwritten"])
def test_short_writes_are_continued(
    scenario: str, faulty_runs: Runs, sound: dict[str, str]
) -> None:
    told = SCENARIOS[scenario]
    runs = faulty_runs("every_call", calls=["pwrite"], mode="short", **told)
    assert len(runs) > 10
    for run in runs:
        check_whole(run, told, sound)


@pytest.mark.parametrize("without", [[], BARE], ids=["full", "bare"])
def test_interrupted_calls_are_repeated(
    without: list[str], faulty_runs: Runs, sound: dict[str, str]
) -> None:
    told = SCENARIOS["one-new"]
    calls = ["open", "fallocate", "ftruncate", "pwrite", "sync_start", "sync_wait", "fsync"]
    runs = faulty_runs(
        "every_call", calls=calls, mode="errno", value=errno.EINTR, without=without, **told
    )
    assert len(runs) > 10
    for run in runs:
        check_whole(run, told, sound)


def test_a_write_that_takes_nothing_is_an_error_and_no_endless_loop(faulty_runs: Runs) -> None:
    runs = faulty_runs("every_call", calls=["pwrite"], mode="zero", **SCENARIOS["one-new"])
    for run in runs[:-1]:
        assert (run["error"], run["folder"]) == ("IoError", {}), run


def test_what_close_says_after_fsync_is_no_news(faulty_runs: Runs, sound: dict[str, str]) -> None:
    told = SCENARIOS["one-new"]
    runs = faulty_runs("every_call", calls=["close"], mode="errno", value=errno.EIO, **told)
    assert runs[0]["call"] == "close"
    for run in runs:
        check_whole(run, told, sound)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ctrl_c_leaves_nothing_or_the_whole(
    scenario: str, faulty_runs: Runs, sound: dict[str, str]
) -> None:
    told = SCENARIOS[scenario]
    runs = faulty_runs("every_call", calls=CALLS, mode="signal", value=signal.SIGINT, **told)
    whole = {name: sound[name] for name in names_of(told)}
    naming = False
    for run in runs[:-1]:
        # Python runs a signal's handler when C++ returns: once the first name is given, all are.
        naming = naming or run["call"] in ("link", "rename")
        assert run["error"] == "KeyboardInterrupt", run
        assert run["folder"] == (whole if naming else before(told)), run
    assert sum(run["folder"] == before(told) for run in runs) > 10
    check_whole(runs[-1], told, sound)


@pytest.mark.parametrize("size", [0, 100, 1 << 20, 3_000_000], ids=str)
def test_a_shard_that_is_truncated_during_the_run_is_a_changed_source(
    size: int, faulty_runs: Runs, model: Path, tmp_path: Path
) -> None:
    victim = model / "model.safetensors"
    good = victim.read_bytes()
    assert len(good) > size
    runs = faulty_runs(
        "first_call", calls=["pwrite"], mode="resize", value=size, victim=str(victim), to=["q8_0"]
    )
    victim.write_bytes(good)
    (run,) = runs
    assert (run["error"], run["exit_code"]) == ("ChangedError", 4), run
    assert run["file"] == str(victim), run
    assert run["folder"] == {}, run


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (("errno", errno.ENOSPC), 4, "tiny-q4_k_m.gguf: tensor .*: cannot be written: No space"),
        (("errno", errno.EIO), 4, "tiny-q4_k_m.gguf: tensor .*: cannot be written: Input/out"),
        (("signal", signal.SIGINT), 130, "nothing was written"),
        (("signal", signal.SIGTERM), 143, "nothing was written"),
        (("signal", signal.SIGHUP), 129, "nothing was written"),
    ],
)
def test_the_command_tells_by_words_and_exit_code(
    fault: tuple[str, int], code: int, words: str, shim: Path, model: Path, tmp_path: Path
) -> None:
    mode, value = fault
    command = [sys.executable, "-m", "phiquant", "convert", str(model), "--to", "q4_k_m"]
    told = {"LD_PRELOAD": str(shim), "FAILING_CALLS": f"pwrite 3 {MODES[mode]} {int(value)}"}
    done = subprocess.run(
        [*command, "-o", str(tmp_path), "--modelfile"],
        env={**os.environ, "PHIQUANT_REGISTRY": "off", **told},
        capture_output=True,
        text=True,
        preexec_fn=child_signals.heed,
    )
    assert done.returncode == code, done
    assert re.search(words, done.stderr), done
    assert "Traceback" not in done.stderr, done
    assert list(tmp_path.iterdir()) == []
