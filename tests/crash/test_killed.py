"""A killed run leaves each target absent or as it was or whole, and the next run cleans up after it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_runs import OLD, Runs, contents

import phiquant as pq
from tiny_model import write_model

CALLS = ["open", "fallocate", "pwrite", "sync_wait", "fsync", "link", "rename"]
OLD_DIGEST = hashlib.sha256(OLD).hexdigest()


@pytest.fixture(scope="session")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 60 MB: long enough to be killed in its midst."""
    folder = tmp_path_factory.mktemp("larger") / "larger"
    return write_model(
        folder, hidden_size=1024, intermediate_size=4096, num_attention_heads=16,
        num_key_value_heads=16, num_hidden_layers=1, tie_word_embeddings=False,
    )  # fmt: skip


def digests_of(model: Path, to: list[str], folder: Path) -> dict[str, str]:
    folder.mkdir()
    pq.convert(model, to, f"{folder}/")
    return contents(folder)


def staged(folder: dict[str, str]) -> set[str]:
    return {name for name in folder if ".phiquant-" in name}


@pytest.mark.parametrize("moment", ["kill_before", "kill_after"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwritten"])
def test_killed_at_any_call_a_run_leaves_no_half_file(
    moment: str, overwrite: bool, faulty_runs: Runs, model: Path, tmp_path: Path
) -> None:
    to = ["q4_k_m", "q8_0"] if overwrite else ["q4_k_m"]
    whole = digests_of(model, to, tmp_path / "whole")
    runs = faulty_runs("killed_at_every_call", calls=CALLS, mode=moment, to=to, overwrite=overwrite)
    assert len(runs) > 20
    for run in runs[:-1]:
        assert run["killed"], run
        for name, digest in run["folder"].items():
            if name not in staged(run["folder"]):
                assert digest in (whole[name], OLD_DIGEST), run
                assert overwrite or digest != OLD_DIGEST, run
        assert not overwrite or set(whole) <= set(run["folder"]), run
        # The next run succeeds and leaves nothing of the killed one.
        assert run["error"] is None, run
        assert run["next"] == whole, run
    assert runs[-1]["error"] is None
    assert runs[-1]["folder"] == whole
    # Kills did leave staged files: the cleaning was put to the test.
    assert any(staged(run["folder"]) for run in runs)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwritten"])
def test_killed_at_a_random_moment_a_run_leaves_no_half_file(
    overwrite: bool, faulty_runs: Runs, larger: Path, tmp_path: Path
) -> None:
    whole = digests_of(larger, ["q4_k_m"], tmp_path / "whole")
    (name,) = whole
    runs = faulty_runs(
        "killed_at_random", source=str(larger), to=["q4_k_m"], seed=7, kills=24, overwrite=overwrite
    )
    for run in runs[:-1]:
        assert run["status"] in (0, signal.SIGKILL), run
        allowed = {whole[name], OLD_DIGEST} if overwrite else {whole[name], None}
        assert run["folder"].get(name) in allowed, run
        # Each run removed what the one before it left.
        assert len(staged(run["folder"])) <= 2, run
        assert set(run["folder"]) - staged(run["folder"]) <= {name}, run
    assert runs[-1]["error"] is None, runs[-1]
    assert runs[-1]["folder"] == whole


def test_of_two_writers_without_overwrite_one_wins(
    faulty_runs: Runs, model: Path, tmp_path: Path
) -> None:
    whole = digests_of(model, ["q4_k_m"], tmp_path / "whole")
    runs = faulty_runs("two_writers", to=["q4_k_m"], rounds=15)
    for run in runs:
        assert run["codes"] == [0, 2], run
        assert run["folder"] == whole, run


def test_two_writers_with_overwrite_both_succeed(
    faulty_runs: Runs, model: Path, tmp_path: Path
) -> None:
    whole = digests_of(model, ["q4_k_m", "q8_0"], tmp_path / "whole")
    runs = faulty_runs("two_writers", to=["q4_k_m", "q8_0"], rounds=15, overwrite=True)
    for run in runs:
        assert run["codes"] == [0, 0], run
        assert run["folder"] == whole, run


def test_what_a_live_run_has_staged_is_not_taken_for_abandoned(model: Path, tmp_path: Path) -> None:
    plan = pq.plan(model, "q4_k_m")
    whole = digests_of(model, ["q4_k_m"], tmp_path / "whole")
    out = tmp_path / "out"
    out.mkdir()
    seen = []

    def meanwhile(done: int, total: int) -> None:
        # Another run into the same folder starts and ends while this one has its file staged.
        if not seen:
            seen.append(len(staged(contents(out))))
            script = "import sys, phiquant; phiquant.convert(*sys.argv[1:4], overwrite=True)"
            command = [sys.executable, "-c", script, str(model), "q4_k_m", str(out)]
            subprocess.run(command, check=True, env=os.environ)

    plan.run(out, overwrite=True, progress=meanwhile)
    assert seen == [1]
    assert contents(out) == whole


def test_a_file_of_another_name_is_never_taken_for_abandoned(model: Path, tmp_path: Path) -> None:
    others = [
        ".other.gguf.phiquant-0123abcd", ".tiny-q4_k_m.gguf.phiquant-0123abcde",
        ".tiny-q4_k_m.gguf.phiquant-", "tiny-q4_k_m.gguf.phiquant-0123abcd",
    ]  # fmt: skip
    for name in others:
        (tmp_path / name).write_text("mine")
    abandoned = tmp_path / ".tiny-q4_k_m.gguf.phiquant-0123abcd"
    abandoned.write_text("of a killed run")
    report = pq.convert(model, "q4_k_m", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*others, Path(report.path).name}
