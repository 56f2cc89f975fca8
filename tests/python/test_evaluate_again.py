"""Evaluation keeps what it has done: for the next model, for the same command, and after Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import COMMAND, environment

import child_signals
import phiquant as pq
from phiquant.evaluate import evaluate, reading
from phiquant.measure import layers
from phiquant.measure.store import Store
from phiquant.reference import Decoder
from places import DATA

SOURCE = DATA / "phi35"
# Greedy texts have tests of their own: here every layer that is run counts.
SETTINGS: dict[str, Any] = {"context": 64, "tokens": 512, "threads": 1, "repetition": 0}
OPTIONS = ("--context", "64", "--tokens", "512", "--threads", "1", "--repetition", "0")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models whose layers were run, one for each layer."""
    seen: list[str] = []
    load = Decoder._load

    def spy(self: Decoder, index: int) -> Any:
        seen.append(self.checkpoint.name)
        return load(self, index)

    monkeypatch.setattr(Decoder, "_load", spy)
    return seen


def kinds(store: Store) -> list[str]:
    return sorted(one.what for one in store.entries() if one.what != "digests")


def test_another_model_needs_no_pass_over_the_source(
    store: Store, runs: list[str], converted: Any
) -> None:
    """And gets the very numbers that it gets without a cache."""
    eight, four = converted("phi35", "q8_0"), converted("phi35", "q4_0")
    evaluate(eight, SOURCE, cache=store, **SETTINGS)
    assert sorted(set(runs)) == ["phi35", "phi35-q8_0"]
    assert kinds(store) == ["evaluation", "source's states"]
    runs.clear()
    second = evaluate(four, SOURCE, cache=store, **SETTINGS)
    assert set(runs) == {"phi35-q4_0"}
    assert 0.4 < second.reused < 0.5
    alone = evaluate(four, SOURCE, cache=False, **SETTINGS)
    assert (alone.scores, alone.source_perplexity) == (second.scores, second.source_perplexity)
    assert alone.reused == 0
    runs.clear()
    both = evaluate([four, eight], SOURCE, cache=store, **SETTINGS)
    assert runs == [] and both.reused == 1
    assert both.scores[0] == second.scores[0]


def test_without_the_cache_nothing_is_found_or_kept(
    store: Store, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.place is not None
    monkeypatch.setenv("PHIQUANT_CACHE", str(store.place))
    evaluate(SOURCE, SOURCE, **SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in store.place.iterdir()}
    assert len(kinds(store)) == 2
    runs.clear()
    done = subprocess.run(
        [*COMMAND, "eval", SOURCE, "--against", SOURCE, *OPTIONS, "--json", "--no-cache"],
        env=environment(),
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["reused"] == 0
    evaluate(SOURCE, SOURCE, cache=False, **SETTINGS)
    assert runs == 12 * ["phi35"]
    assert before == {path: path.stat().st_mtime_ns for path in store.place.iterdir()}


CHANGES: dict[str, dict[str, Any]] = {
    "another text": {"text": DATA / "eval.txt", "tokens": 448},
    "another context": {"context": 32},
    "more threads": {"threads": 2},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_are_another_measurement(change: str, store: Store) -> None:
    evaluate(SOURCE, SOURCE, cache=store, **SETTINGS)
    again = evaluate(SOURCE, SOURCE, cache=store, **(SETTINGS | CHANGES[change]))
    assert again.reused == 0


def test_a_changed_model_is_another_measurement(store: Store, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(SOURCE, model)
    first = evaluate(SOURCE, model, cache=store, **SETTINGS)
    # The copy is found, being the same weights; then one weight changes, and nothing else.
    assert first.scores[0].max_kld == 0
    entry = pq.open(model).entries["model.norm.weight"]
    path = pq.open(model).files[entry.file].path
    facts = path.stat()
    with path.open("r+b") as file:
        file.seek(entry.offset)
        file.write(np.float32(3.0).tobytes()[2:])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    changed = evaluate(SOURCE, model, cache=store, **SETTINGS)
    assert changed.scores[0].max_kld > 0
    # Settings of the model count, too.
    config = json.loads((SOURCE / "config.json").read_text())
    shutil.copy(SOURCE / path.name, path)
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.01}))
    assert evaluate(SOURCE, model, cache=store, **SETTINGS).scores[0].max_kld > 0


def test_a_damaged_measurement_is_made_again(store: Store, converted: Any) -> None:
    wanted = evaluate(converted("phi35", "q4_0"), SOURCE, cache=store, **SETTINGS)
    assert store.place is not None
    for path in store.place.glob("*.measurement"):
        raw = bytearray(path.read_bytes())
        raw[-40] ^= 1
        path.write_bytes(raw)
    again = evaluate(converted("phi35", "q4_0"), SOURCE, cache=store, **SETTINGS)
    assert again.scores == wanted.scores
    assert kinds(store) == ["evaluation", "source's states"]


def test_chunks_and_groups_of_models_change_nothing(
    store: Store, converted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [converted("phi35", preset) for preset in ("q8_0", "q4_0", "q6_k")]
    settings = SETTINGS | {"tokens": 3 * 1024}
    whole = evaluate(models, SOURCE, cache=False, **settings)
    monkeypatch.setattr(reading, "_CHUNK", 1024)
    monkeypatch.setattr(reading, "_TOGETHER", 2)
    calls: list[tuple[int, int]] = []
    parts = evaluate(
        models, SOURCE, cache=store, **settings, progress=lambda *call: calls.append(call)
    )
    assert kinds(store) == 9 * ["evaluation"] + 3 * ["source's states"]
    assert (parts.scored, parts.windows) == (whole.scored, whole.windows)
    for one, other in zip(parts.scores, whole.scores, strict=True):
        # Products of fewer rows may be summed in another order.
        assert one.mean_kld == pytest.approx(other.mean_kld, rel=1e-4)
        assert one.perplexity == pytest.approx(other.perplexity, rel=1e-6)
        assert one.top1 == other.top1
    done = [one for one, _ in calls]
    assert done == sorted(done)
    assert calls[-1][0] == calls[-1][1]


def test_windows_are_cut_into_chunks_of_whole_products() -> None:
    for windows, context in ((20, 512), (1, 4), (640, 64), (3, 8192), (17, 1000)):
        ids = np.arange(windows * context).reshape(windows, context)
        parts = reading._cut(ids)
        np.testing.assert_array_equal(np.concatenate(parts), ids)
        group = max(1, 1024 // context)
        assert all(len(part) % group == 0 for part in parts[:-1])
        assert max(part.size for part in parts) <= max(8192, context) + 1024


# eval, sending itself Ctrl-C when so much of the work is done.
_PRESSED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import phiquant.cli.eval as command
share = float(sys.argv.pop(1))
def press(done, total):
    if done > share * total:
        os.kill(os.getpid(), signal.SIGINT)
command.watcher = lambda words, about: press
from phiquant.cli import main
main()
"""


def pressed(share: float, *args: object, place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PRESSED, str(share), "eval", *map(str, args)],
        env=environment(PHIQUANT_CACHE=str(place)),
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=child_signals.heed,
    )


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    tmp_path: Path, converted: Any
) -> None:
    place = tmp_path / "cache"
    args = (converted("phi35", "q4_0"), "--against", SOURCE, *OPTIONS, "--json")
    for share in (0.3, 0.6, 0.9):  # in the source, in the model, and while it is scored
        done = pressed(share, *args, place=place)
        assert done.returncode == 130, done.stderr
        assert "interrupted; what was done is in the cache" in done.stderr
        assert json.loads(done.stdout)["exit_code"] == 130
    done = pressed(2, *args, place=place)
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["reused"] > 0.7
    whole = evaluate(converted("phi35", "q4_0"), SOURCE, cache=False, **SETTINGS)
    assert facts["models"] == list(whole.to_json()["models"])
    assert kinds(Store(place)) == ["evaluation", "source's states"]
    assert not list(place.glob(".*"))


def test_ctrl_c_in_the_first_layer_or_without_a_cache_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "cache"
    args = (SOURCE, "--against", SOURCE, *OPTIONS)
    for share, more in ((0.0, ()), (0.5, ("--no-cache",))):
        done = pressed(share, *args, *more, place=place)
        assert done.returncode == 130
        assert done.stderr == "phiquant: interrupted; nothing was written\n"
    assert kinds(Store(place)) == []


def test_a_killed_run_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps nothing by itself: every layer's state is on disk when time has passed."""
    monkeypatch.setattr(layers, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(layers, "_SAVE_SHARE", 0.0)
    seen: list[str] = []

    def report(done: int, total: int) -> None:
        seen.extend(one.source for one in store.entries() if one.what == layers.UNFINISHED)

    evaluate(SOURCE, SOURCE, cache=store, **SETTINGS, progress=report)
    assert sorted(set(seen)) == [f"{SOURCE}, {done} of 6 layers" for done in range(1, 6)]
    assert kinds(store) == ["evaluation", "source's states"]


def test_two_commands_at_once_share_a_cache(tmp_path: Path, converted: Any) -> None:
    models = [converted("phi35", "q4_0"), converted("phi35", "q8_0")]

    def run(model: Path) -> subprocess.CompletedProcess[str]:
        options = ("--against", SOURCE, *OPTIONS, "--json")
        return pressed(2, model, *options, place=tmp_path / "cache")

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(run, [*models, models[0]]))
    for model, one in zip([*models, models[0]], done, strict=True):
        assert one.returncode == 0, one.stderr
        wanted = evaluate(model, SOURCE, cache=False, **SETTINGS).to_json()["models"]
        assert json.loads(one.stdout)["models"] == list(wanted)
    assert kinds(Store(tmp_path / "cache")) == 2 * ["evaluation"] + ["source's states"]
