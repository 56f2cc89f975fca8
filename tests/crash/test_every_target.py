"""Whatever the target, and with all of them in one run: faults, full disks, kills and rivals."""

from __future__ import annotations

import errno
import hashlib
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_runs import OLD, Runs, contents

import phiquant as pq
from tiny_model import config_of, weights_of, write_model

CALLS = [
    "mkdir", "open", "fallocate", "ftruncate", "pwrite", "sync_wait", "fsync", "link", "rename",
    "renameat2",
]  # fmt: skip
PUBLISHING = ["mkdir", "fsync", "link", "rename", "renameat2"]
OLD_DIGEST = hashlib.sha256(OLD).hexdigest()

FOLDERS = ["onnx:int4", "openvino:int4_sym", "mlx:4bit", "hf:w4a16"]
ALL = [*FOLDERS, "q4_k_m"]


@pytest.fixture(scope="module")
def sound(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what an undisturbed run writes: every target's, by path."""
    folder = tmp_path_factory.mktemp("sound")
    pq.convert(model, ALL, f"{folder}/")
    return contents(folder)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the name of the first, and other weights."""
    weights = {
        name: array * array.dtype.type(-0.5) for name, array in weights_of(config_of()).items()
    }
    return write_model(tmp_path_factory.mktemp("other") / "tiny", weights)


def of_target(to: str, digests: dict[str, str]) -> dict[str, str]:
    """The part of a folder's digests that belongs to one target."""
    name = "tiny-" + to.replace(":", "-")
    return {path: digest for path, digest in digests.items() if path.startswith(name)}


def staged(folder: dict[str, str]) -> set[str]:
    return {name for name in folder if ".phiquant-" in name}


@pytest.mark.parametrize("to", [[to] for to in FOLDERS[1:]] + [ALL], ids=lambda to: to[-1])
def test_a_failing_call_is_an_error_and_changes_nothing(
    to: list[str], faulty_runs: Runs, sound: dict[str, str]
) -> None:
    whole = {path: digest for one in to for path, digest in of_target(one, sound).items()}
    # All at once are overwritten: what was published before the fault has to be taken back. Their
    # writes are those of the single runs.
    told: dict[str, Any] = {"overwrite": len(to) > 1, "mode": "errno", "value": errno.EIO}
    calls = CALLS if len(to) == 1 else PUBLISHING
    runs = faulty_runs("every_call", calls=calls, to=to, **told)
    before = dict.fromkeys(whole, OLD_DIGEST) if told["overwrite"] else {}
    assert len(runs) > (5 * len(whole) if len(to) == 1 else len(whole))
    for run in runs[:-1]:
        assert (run["error"], run["exit_code"]) == ("IoError", 4), run
        assert not re.search(r"phiquant-[0-9a-f]{8}", run["file"]), run
        assert run["folder"] == before, run
    assert runs[-1]["error"] is None, runs[-1]
    assert runs[-1]["folder"] == whole
    assert {run["call"] for run in runs[:-1]} >= set(calls) - {"ftruncate", "link", "rename"}


@pytest.mark.parametrize(
    ("to", "code", "word"),
    [*((to, "ENOSPC", "full") for to in FOLDERS), ("mlx:4bit", "EDQUOT", "quota")],
)
def test_a_full_disk_is_told_and_leaves_the_old_result(
    to: str, code: str, word: str, faulty_runs: Runs, sound: dict[str, str]
) -> None:
    # Disks that fill up at the n-th write, where the space could not be reserved before.
    runs = faulty_runs(
        "every_call", calls=["pwrite"], mode="errno", value=getattr(errno, code), to=[to],
        overwrite=True, without=["fallocate"],
    )  # fmt: skip
    before = dict.fromkeys(of_target(to, sound), OLD_DIGEST)
    assert len(runs) > 3
    for run in runs[:-1]:
        assert (run["error"], run["exit_code"]) == ("IoError", 4), run
        assert word in (run["cause"] + run["remedy"]).lower(), run
        assert run["folder"] == before, run
    assert runs[-1]["folder"] == of_target(to, sound)


@pytest.mark.parametrize("to", ALL)
def test_a_file_size_limit_is_an_error_and_kills_nothing(
    to: str, model: Path, tmp_path: Path
) -> None:
    script = f"""
import resource, sys
import phiquant as pq
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    pq.convert({str(model)!r}, {to!r}, {str(tmp_path)!r} + "/out")
except pq.IoError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 4, done
    assert "ulimit -f" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwritten"])
def test_killed_at_random_moments_every_target_is_whole_or_as_it_was(
    overwrite: bool, faulty_runs: Runs, sound: dict[str, str]
) -> None:
    runs = faulty_runs("killed_at_random", to=ALL, seed=11, kills=20, overwrite=overwrite)
    assert len(runs) == 21
    for run in runs[:-1]:
        assert run["status"] in (0, signal.SIGKILL), run
        there = {name: d for name, d in run["folder"].items() if name not in staged(run["folder"])}
        for to in ALL:
            whole = of_target(to, sound)
            old = dict.fromkeys(whole, OLD_DIGEST) if overwrite else {}
            assert of_target(to, there) in (whole, old), (to, run)
        assert set(there) <= set(sound), run
    # What the kills left stood in nobody's way, and is gone.
    assert runs[-1]["error"] is None, runs[-1]
    assert runs[-1]["folder"] == sound
    assert any(staged(run["folder"]) for run in runs)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwritten"])
def test_of_two_writers_at_the_same_time_one_s_result_stands(
    overwrite: bool,
    faulty_runs: Runs,
    other_model: Path,
    sound: dict[str, str],
    tmp_path: Path,
) -> None:
    (tmp_path / "sound").mkdir()
    pq.convert(other_model, ALL, f"{tmp_path}/sound/")
    others = contents(tmp_path / "sound")
    assert set(others) == set(sound)
    assert all(of_target(to, sound) != of_target(to, others) for to in ALL)
    runs = faulty_runs(
        "two_different_writers", other=str(other_model), to=ALL, rounds=12, seed=3,
        overwrite=overwrite,
    )  # fmt: skip
    winners = []
    for run in runs:
        assert sorted(run["codes"]) == ([0, 0] if overwrite else [0, 2]), run
        for to in ALL:
            mine = of_target(to, run["folder"])
            assert mine in (of_target(to, sound), of_target(to, others)), (to, run)
            winners.append(mine == of_target(to, sound))
        assert set(run["folder"]) == set(sound), run
        if not overwrite:
            assert run["folder"] == (sound, others)[run["codes"].index(0)], run
    # Each was the last at times.
    assert len(set(winners)) == 2
