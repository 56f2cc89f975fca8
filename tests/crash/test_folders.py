"""Results that are folders, whatever call fails and whenever a run is killed: whole or as before."""

from __future__ import annotations

import errno
import hashlib
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from faulty_runs import OLD, Runs, contents

import phiquant as pq

CALLS = [
    "mkdir", "open", "fallocate", "ftruncate", "pwrite", "sync_wait", "fsync", "link", "rename",
    "renameat2",
]  # fmt: skip
OLD_DIGEST = hashlib.sha256(OLD).hexdigest()
TO = ["onnx:int4", "q8_0"]


@pytest.fixture(scope="module")
def sound(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what an undisturbed run writes: a folder and a file."""
    folder = tmp_path_factory.mktemp("sound")
    pq.convert(model, TO, f"{folder}/")
    return contents(folder)


def staged(folder: dict[str, str]) -> bool:
    return any(".phiquant-" in name for name in folder)


# What some network file systems lack.
BARE = ["renameat2", "link"]


@pytest.mark.parametrize(
    ("overwrite", "without"),
    [(False, []), (True, []), (False, BARE)],
    ids=["new", "overwritten", "bare"],
)
def test_a_failing_call_is_an_error_and_changes_nothing(
    overwrite: bool, without: list[str], faulty_runs: Runs, sound: dict[str, str]
) -> None:
    told: dict[str, Any] = {"mode": "errno", "value": errno.EIO, "overwrite": overwrite}
    runs = faulty_runs("every_call", calls=CALLS, to=TO, without=without, **told)
    before = dict.fromkeys(sound, OLD_DIGEST) if overwrite else {}
    assert len(runs) > 40
    for run in runs[:-1]:
        assert (run["error"], run["exit_code"]) == ("IoError", 4), run
        assert not re.search(r"phiquant-[0-9a-f]{8}", run["file"]), run
        assert run["folder"] == before, run
    assert runs[-1]["error"] is None, runs[-1]
    assert runs[-1]["folder"] == sound
    met = {run["call"] for run in runs[:-1]}
    assert met >= {"mkdir", "open", "fallocate", "pwrite", "fsync"}
    assert ("rename" if without else "renameat2") in met


def test_a_bare_file_system_can_be_overwritten(faulty_runs: Runs, sound: dict[str, str]) -> None:
    told: dict[str, Any] = {"calls": ["none"], "mode": "errno", "overwrite": True}
    (run,) = faulty_runs("every_call", to=TO, without=BARE, **told)
    assert run["error"] is None, run
    assert run["folder"] == sound


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwritten"])
def test_interrupted_calls_are_repeated(
    overwrite: bool, faulty_runs: Runs, sound: dict[str, str]
) -> None:
    calls = ["open", "fallocate", "pwrite", "sync_wait", "fsync"]
    told: dict[str, Any] = {"mode": "errno", "value": errno.EINTR, "overwrite": overwrite}
    for run in faulty_runs("every_call", calls=calls, to=TO, **told):
        assert run["error"] is None, run
        assert run["folder"] == sound, run


@pytest.mark.parametrize(
    ("moment", "overwrite"),
    [("kill_before", True), ("kill_after", False)],
    ids=["before-overwritten", "after-new"],
)
def test_killed_at_any_call_a_run_leaves_no_half_folder(
    moment: str, overwrite: bool, faulty_runs: Runs, sound: dict[str, str]
) -> None:
    runs = faulty_runs("killed_at_every_call", calls=CALLS, mode=moment, to=TO, overwrite=overwrite)
    folder_names = {name for name in sound if "/" in name}
    for run in runs[:-1]:
        there = {name: digest for name, digest in run["folder"].items() if name in folder_names}
        old = dict.fromkeys(folder_names, OLD_DIGEST) if overwrite else {}
        assert there in (old, {name: sound[name] for name in folder_names}), run
        # The next run succeeds and leaves nothing of the killed one.
        assert run["error"] is None, run
        assert run["next"] == sound, run
    assert runs[-1]["folder"] == sound
    assert any(staged(run["folder"]) for run in runs)


def test_ctrl_c_leaves_nothing_or_the_whole(faulty_runs: Runs, sound: dict[str, str]) -> None:
    runs = faulty_runs("every_call", calls=CALLS, mode="signal", value=signal.SIGINT, to=TO)
    for run in runs[:-1]:
        assert run["error"] == "KeyboardInterrupt", run
        assert run["folder"] in ({}, sound), run
    assert sum(run["folder"] == {} for run in runs) > 30
    assert runs[-1]["folder"] == sound
