"""Full disks, limits of the process, and sources that change while they are read."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import phiquant as pq
from tiny_model import write_model


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A checkpoint that the test may damage."""
    return write_model(tmp_path / "model")


def test_a_file_size_limit_is_an_error_and_kills_nothing(model: Path, tmp_path: Path) -> None:
    # Beyond the limit the kernel sends SIGXFSZ, which ends a process that does not ignore it.
    script = f"""
import resource, sys
import phiquant as pq
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
try:
    pq.convert({str(model)!r}, "q8_0", {str(tmp_path)!r})
except pq.IoError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 4, done
    assert "ulimit -f" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_too_few_descriptors_are_an_error(own_model: Path, tmp_path: Path) -> None:
    write_model(own_model, shards=8)
    (own_model / "model.safetensors").unlink()
    out = tmp_path / "out"
    out.mkdir()
    plan = pq.plan(own_model, "q8_0")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, limit[1]))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(4):
            os.close(taken.pop())
        with pytest.raises(pq.IoError, match="ulimit -n"):
            plan.run(out)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for descriptor in taken:
            os.close(descriptor)
    assert list(out.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount; failing_calls covers full disks")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no mounting here, as in most containers; failing_calls covers full disks")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    model: Path, small_disk: Path
) -> None:
    (small_disk / "ballast").write_bytes(bytes(3 << 20))
    with pytest.raises(pq.IoError, match="bytes free") as caught:
        pq.convert(model, "q8_0", small_disk)
    assert caught.value.exit_code == 4
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_disk_that_fills_up_meanwhile_is_an_error(
    model: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = pq.plan(model, "q8_0")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(3 << 20))
    # What statvfs says is soon untrue where others write, too.
    generous = shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)  # type: ignore[attr-defined]
    monkeypatch.setattr("phiquant.preflight.shutil.disk_usage", lambda _: generous)
    with pytest.raises(pq.IoError, match="disk is full"):
        plan.run(small_disk)
    assert list(small_disk.iterdir()) == [ballast]
    ballast.unlink()
    assert Path(plan.run(small_disk).path).exists()


def truncate(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


def grow(shard: Path) -> None:
    with shard.open("ab") as file:
        file.write(b"more")


def replace(shard: Path) -> None:
    other = shard.with_name("other")
    shutil.copy2(shard, other)
    other.rename(shard)


def overwrite_in_place(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\0\0")


def remove(shard: Path) -> None:
    shard.unlink()


CHANGES = [truncate, grow, replace, overwrite_in_place, remove]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_source_that_changes_between_plan_and_run_is_refused(
    change: Callable[[Path], None], own_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    plan = pq.plan(own_model, "q8_0")
    shard = own_model / "model.safetensors"
    change(shard)
    with pytest.raises(pq.IoError, match=r"model\.safetensors") as caught:
        plan.run(out)
    assert caught.value.exit_code == 4
    if change is not remove:
        assert isinstance(caught.value, pq.ChangedError)
        assert "changed" in caught.value.cause
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_source_that_changes_during_the_run_is_refused(
    change: Callable[[Path], None], own_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    done = []

    def meanwhile(at: int, total: int) -> None:
        if not done:
            done.append(at)
            change(own_model / "model.safetensors")

    with pytest.raises(pq.ChangedError) as caught:
        pq.convert(own_model, "q8_0", out, progress=meanwhile)
    assert caught.value.exit_code == 4
    assert list(out.iterdir()) == []


def test_a_shard_that_is_truncated_while_the_run_is_stopped_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", vocab_size=60_000)
    out = tmp_path / "out"
    out.mkdir()
    script = """
import os, signal, sys, phiquant as pq
def stop(done, total):
    global stopped
    if not stopped:
        stopped = True
        os.kill(os.getpid(), signal.SIGSTOP)
stopped = False
try:
    pq.convert(sys.argv[1], "q4_k_m", sys.argv[2], threads=1, progress=stop)
except pq.ChangedError as error:
    sys.exit(error.exit_code)
"""
    child = subprocess.Popen([sys.executable, "-c", script, str(model), str(out)])
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    os.truncate(model / "model.safetensors", 4096)
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == 4
    assert list(out.iterdir()) == []
