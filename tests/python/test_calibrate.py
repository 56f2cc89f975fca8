"""Calibration gives llama-imatrix's numbers, goes on after it was stopped, and refuses what cannot be right."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import environment

import child_signals
import phiquant as pq
from phiquant.measure import SquaredSums, calibrate, layers, read_importance
from phiquant.measure.store import Store
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder
from places import DATA, FIXTURES, GOLDEN

TEXT = DATA / "eval.txt"
# Windows and their number in the recorded files; see golden/make_imatrix.py.
RECORDED = {"phi35": (256, 12), "phi4mini": (256, 12), "phi3win": (32, 64)}
# A mean square's relative distance from llama-imatrix's, on the same float32 weights. llama-imatrix
# adds thousands of squares in float32, one after the other: that alone makes some 1e-5 (measured:
# up to 1.4e-5).
TOLERANCE = 1e-4
# With llama-imatrix's defaults and a BF16 GGUF, ggml rounds activations to bfloat16 before each
# product, and keys and values to float16: measured up to 4.4e-3, and 2.9e-4 on average.
TOLERANCE_BF16 = 2e-2


def run(source: Any, out: Path, **options: Any) -> Any:
    """Without a cache, unless the test is about it."""
    settings = {"text": TEXT, "out": out, "threads": 1, "cache": False}
    return calibrate(source, **(settings | options))


def distance(path: Path, golden: str) -> float:
    found, wanted = read_importance(path), read_importance(GOLDEN / f"imatrix-{golden}.gguf")
    assert list(found) == list(wanted)
    for name in wanted:
        np.testing.assert_array_equal(
            found.activations[name].counts, wanted.activations[name].counts
        )
    return max(float(np.abs(found[name] / wanted[name] - 1).max()) for name in wanted)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_means_are_llama_imatrix_s(fixture: str, tmp_path: Path) -> None:
    context, count = RECORDED[fixture]
    out = tmp_path / "x.imatrix.gguf"
    report = run(DATA / fixture, out, context=context, tokens=context * count)
    assert distance(out, fixture) < TOLERANCE
    assert (report.windows, report.context, report.resumed) == (count, context, 0)
    assert report.tokens == context * count


@pytest.mark.parametrize("preset", ["f32", "bf16"])
def test_a_gguf_is_a_source(preset: str, tmp_path: Path, converted: Any) -> None:
    context, count = RECORDED["phi4mini"]
    out = tmp_path / "x.gguf"
    options = {"context": context, "tokens": context * count, "tokenizer": DATA / "phi4mini"}
    run(converted("phi4mini", preset), out, **options)
    assert distance(out, "phi4mini") < TOLERANCE


def test_means_are_near_llama_imatrix_s_as_people_run_it(tmp_path: Path, converted: Any) -> None:
    out = tmp_path / "x.gguf"
    run(converted("phi4mini", "bf16"), out, tokens=8 * 512, tokenizer=DATA / "phi4mini")
    assert TOLERANCE < distance(out, "phi4mini-default") < TOLERANCE_BF16


def test_the_file_is_built_as_llama_imatrix_builds_it(tmp_path: Path) -> None:
    """Same tensors, types, shapes and order, and same keys; only numbers and paths differ."""
    out = tmp_path / "x.gguf"
    run(DATA / "phi35", out, context=256, tokens=256 * 12)
    ours, theirs = pq.open(out), pq.open(GOLDEN / "imatrix-phi35.gguf")
    assert [(e.name, e.type, e.shape) for e in ours.entries.values()] == [
        (e.name, e.type, e.shape) for e in theirs.entries.values()
    ]
    assert ours.metadata_types == theirs.metadata_types
    assert ours.metadata | {"imatrix.datasets": ["eval.txt"]} == theirs.metadata


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(DATA / "phi3win", tmp_path / name, context=64, tokens=256)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_sums_are_of_squares() -> None:
    x = np.random.default_rng(0).standard_normal((200, 7), dtype=np.float32)
    sums = SquaredSums()
    sums("w", x[:130])
    sums("w", x[130:])
    np.testing.assert_allclose(sums.sums["w"], (x.astype(np.float64) ** 2).sum(0), rtol=1e-6)


class StopError(Exception):
    """What a test stops a run with."""


def stop_after(tokens: int, error: type[BaseException]) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if done > tokens:
            raise error

    return report


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def kinds(store: Store) -> list[str]:
    return sorted(one.what for one in store.entries() if one.what != "digests")


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopError])
def test_a_stopped_run_goes_on(error: type[BaseException], tmp_path: Path, store: Store) -> None:
    run(DATA / "phi35", tmp_path / "whole", context=64, tokens=128)
    options = {"context": 64, "tokens": 128, "cache": store}
    out = tmp_path / "x.gguf"
    with pytest.raises(error):
        run(DATA / "phi35", out, **options, progress=stop_after(3 * 128, error))
    assert not out.exists()
    assert kinds(store) == [layers.UNFINISHED]
    with pytest.raises(error):
        run(DATA / "phi35", out, **options, progress=stop_after(5 * 128, error))
    calls: list[tuple[int, int]] = []
    report = run(DATA / "phi35", out, **options, progress=lambda *call: calls.append(call))
    assert report.resumed == 5
    assert calls[0][0] > 5 * 128
    assert calls[-1] == (6 * 128, 6 * 128)
    assert kinds(store) == ["calibration"]
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


def test_the_same_measurement_is_made_once(tmp_path: Path, store: Store) -> None:
    options = {"context": 64, "tokens": 128, "cache": store}
    first = run(DATA / "phi35", tmp_path / "a", **options)
    again = run(DATA / "phi35", tmp_path / "b", **options)
    assert (first.resumed, again.resumed) == (0, 6)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_run_stopped_in_its_first_layer_leaves_nothing(tmp_path: Path, store: Store) -> None:
    options = {"context": 64, "tokens": 128, "cache": store}
    with pytest.raises(StopError):
        run(DATA / "phi35", tmp_path / "x", **options, progress=stop_after(0, StopError))
    assert list(tmp_path.iterdir()) == []
    assert kinds(store) == []


def test_a_state_is_kept_while_the_run_lasts(
    tmp_path: Path, store: Store, monkeypatch: Any
) -> None:
    """A killed process keeps no state by itself: every layer's is on disk when time has passed."""
    monkeypatch.setattr(layers, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(layers, "_SAVE_SHARE", 0.0)
    seen: list[str] = []

    def report(done: int, total: int) -> None:
        seen.extend(one.source for one in store.entries() if one.what == layers.UNFINISHED)

    options = {"context": 64, "tokens": 128, "cache": store}
    run(DATA / "phi35", tmp_path / "x.gguf", **options, progress=report)
    assert sorted(set(seen)) == [f"{DATA / 'phi35'}, {done} of 6 layers" for done in range(1, 6)]


def test_a_state_that_cannot_be_written_costs_no_run(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(layers, "_SAVE_SECONDS", 0.0)
    (tmp_path / "file").write_text("no folder")
    store = Store(tmp_path / "file")
    run(DATA / "phi3win", tmp_path / "x", context=64, tokens=128, cache=store)
    assert "cannot be kept" in caplog.text
    assert (tmp_path / "x").exists()


def test_a_damaged_state_is_not_used(tmp_path: Path, store: Store) -> None:
    """The ways to damage one are in test_store.py."""
    options = {"context": 64, "tokens": 128, "cache": store}
    out = tmp_path / "x.gguf"
    with pytest.raises(StopError):
        run(DATA / "phi35", out, **options, progress=stop_after(3 * 128, StopError))
    assert store.place is not None
    for path in store.place.iterdir():
        os.truncate(path, path.stat().st_size // 2)
    assert run(DATA / "phi35", out, **options).resumed == 0


def test_the_state_of_another_run_is_not_used(tmp_path: Path, store: Store) -> None:
    source = tmp_path / "model"
    shutil.copytree(DATA / "phi35", source)
    text = tmp_path / "text"
    text.write_text(TEXT.read_text()[:2000])
    out = tmp_path / "x.gguf"
    options: dict[str, Any] = {"context": 64, "tokens": 128, "text": text, "cache": store}

    def stopped() -> None:
        with pytest.raises(StopError):
            run(source, out, **options, progress=stop_after(3 * 128, StopError))

    stopped()
    other = options | {"text": tmp_path / "other"}
    other["text"].write_text(TEXT.read_text()[100:2100])
    assert run(source, out, **other).resumed == 0
    out.unlink()
    assert run(source, out, **(options | {"context": 32})).resumed == 0
    out.unlink()
    assert run(source, out, **(options | {"threads": 2})).resumed == 0
    out.unlink()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.01}))
    assert run(source, out, **options).resumed == 0
    out.unlink()
    (source / "config.json").write_text(json.dumps(config))
    assert run(source, out, **options).resumed == 3


def cut(fixture: str, text: str, **options: Any) -> np.ndarray:
    return windows(pq.open(DATA / fixture), text, vocabulary=4096, **options)


def test_windows_are_the_text_s_tokens() -> None:
    import tokenizers

    text = read_text(TEXT)
    for fixture in ("phi35", "phi4mini"):
        tokenizer = tokenizers.Tokenizer.from_file(str(DATA / fixture / "tokenizer.json"))
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        got = cut(fixture, text, context=100)
        assert got.shape == (len(ids) // 100, 100)
        assert got.ravel().tolist() == ids[: got.size]
        # The same from a part of the text.
        np.testing.assert_array_equal(cut(fixture, text, context=100, tokens=333), got[:3])


def test_a_model_with_bos_has_it_first_in_each_window(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DATA / "phi35", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    text = read_text(TEXT)
    plain = cut("phi35", text, context=50, tokens=200)
    begun = windows(pq.open(folder), text, vocabulary=4096, context=50, tokens=200)
    assert (begun[:, 0] == 1).all()
    # llama.cpp puts a BOS before the text, and then overwrites the first of each other window.
    np.testing.assert_array_equal(begun[0, 1:], plain[0, :-1])
    np.testing.assert_array_equal(begun[1, 1:], plain.ravel()[50:99])


def test_special_tokens_are_text_unless_wanted() -> None:
    text = "<|user|>How?<|end|>" * 10
    for wanted in (False, True):
        ids = cut("phi35", text, context=20, parse_special=wanted)
        special = [token for token in ids.ravel() if token >= 4000]
        assert bool(special) == wanted


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "too few tokens": ({"tokens": 100}, pq.UsageError, "less than one window"),
    "a context of one": ({"context": 1}, pq.UsageError, "not from 2"),
    "a context beyond the model's": ({"context": 9000}, pq.UsageError, "not from 2 to 8192"),
    "no text": ({"text": "absent"}, pq.IoError, "absent"),
    "no tokenizer": ({"tokenizer": DATA}, pq.UnsupportedError, "tokenizer.json"),
    "no threads": ({"threads": 0}, pq.UsageError, "threads"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nonsense_is_refused(case: str, tmp_path: Path) -> None:
    options, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        run(DATA / "phi35", tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"a\xff\xfeb", "byte 1 is 0xff"),
        (b"short", "less than one"),
    ],
)
def test_texts_that_are_none_are_refused(raw: bytes, words: str, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(raw)
    with pytest.raises(pq.PhiquantError, match=words):
        run(DATA / "phi35", tmp_path / "x", text=text)


def test_a_gguf_without_a_tokenizer_is_refused_with_words(tmp_path: Path, converted: Any) -> None:
    with pytest.raises(pq.UnsupportedError, match="--tokenizer FOLDER"):
        run(converted("phi35", "bf16"), tmp_path / "x")


def test_another_model_s_tokenizer_is_refused(tmp_path: Path) -> None:
    text = TEXT.read_text()
    with pytest.raises(pq.FormatError, match="300 rows"):
        windows(
            pq.open(DATA / "phi35"), text, vocabulary=300, context=8, tokenizer=DATA / "phi4mini"
        )


def test_inputs_and_results_are_not_replaced(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT.read_text()[:3000])
    with pytest.raises(pq.UsageError, match="is an input itself"):
        run(DATA / "phi35", text, text=text, overwrite=True)
    out = tmp_path / "x"
    run(DATA / "phi3win", out, text=text, context=64, tokens=64)
    before = out.read_bytes()
    with pytest.raises(pq.UsageError, match="exists already"):
        run(DATA / "phi3win", out, text=text, context=64, tokens=64)
    with pytest.raises(pq.IoError, match="mkdir"):
        run(DATA / "phi3win", tmp_path / "no" / "x", text=text)
    with pytest.raises(pq.UsageError, match="is a folder"):
        run(DATA / "phi3win", tmp_path, text=text, overwrite=True)
    assert out.read_bytes() == before


def test_weights_that_overflow_are_named(tmp_path: Path) -> None:
    import tiny_model

    folder = tmp_path / "model"
    weights = tiny_model.weights_of(tiny_model.config_of())
    for name in ("model.layers.0.mlp.gate_up_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        weights[name] = np.full(weights[name].shape, 1e30).astype(weights[name].dtype)
    tiny_model.write_model(folder, weights)
    with pytest.raises(pq.ValueRangeError, match="NaN or infinite") as caught:
        run(folder, tmp_path / "x", context=64, tokens=64)
    assert caught.value.tensor == name


def command(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "phiquant", "calibrate", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_writes_a_file_and_says_where(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    options = ("--text", TEXT, "-o", out, "--context", 64, "--tokens", 200)
    done = command(DATA / "phi3win", *options)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    assert "192 tokens, 3 windows of 64" in done.stderr
    assert f"--importance {out}" in done.stderr
    refused = command(DATA / "phi3win", *options)
    assert (refused.returncode, refused.stdout) == (2, "")
    again = command(DATA / "phi3win", *options, "--overwrite", "--json", "-q", "--threads", 1)
    assert (again.returncode, again.stderr) == (0, "")
    report = json.loads(again.stdout)
    assert report["path"] == str(out)
    assert (report["tokens"], report["matrices"], report["resumed"]) == (192, 8, 0)


# calibrate, sending itself Ctrl-C when so much of the work is done.
_PRESSED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import phiquant.cli.calibrate as command
share = float(sys.argv.pop(1))
def press(done, total):
    if done > share * total:
        os.kill(os.getpid(), signal.SIGINT)
command.watcher = lambda words, about: press
from phiquant.cli import main
main()
"""


def test_the_interrupted_command_says_how_to_go_on(tmp_path: Path, store: Store) -> None:
    out = tmp_path / "x.gguf"

    def pressed(share: float, *more: str) -> subprocess.CompletedProcess[str]:
        options = ["--text", str(TEXT), "-o", str(out), "--context", "64", "--tokens", "64"]
        return subprocess.run(
            [
                sys.executable,
                "-c",
                _PRESSED,
                str(share),
                "calibrate",
                str(DATA / "phi35"),
                *options,
                "--json",
                *more,
            ],
            env=environment(PHIQUANT_CACHE=str(store.place)),
            capture_output=True,
            text=True,
            preexec_fn=child_signals.heed,
        )

    done = pressed(0.7)
    assert done.returncode == 130
    assert "interrupted; what was done is in the cache, and the same command goes" in done.stderr
    assert not out.exists()
    done = pressed(0.7, "--no-cache")
    assert done.stderr == "phiquant: interrupted; nothing was written\n"
    done = pressed(2)
    assert (done.returncode, json.loads(done.stdout)["resumed"]) == (0, 4)


def test_more_tokens_than_memory_are_refused_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Decoder, "memory", lambda *_: 1 << 60)
    with pytest.raises(pq.UsageError, match="--tokens"):
        run(DATA / "phi35", tmp_path / "x")


def test_importing_phiquant_loads_neither_the_run_nor_the_tokenizers() -> None:
    code = (
        "import sys, phiquant; names = ('phiquant.reference', 'phiquant.measure.calibration', "
        "'tokenizers'); print([m for m in sys.modules if m.startswith(names)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_decoder_is_the_one_that_is_tested() -> None:
    """SquaredSums on the reference run's hook is all that calibration adds."""
    decoder = Decoder(pq.open(DATA / "phi3win"), threads=1)
    sums = SquaredSums()
    decoder.hidden_states(np.arange(64)[None], on_linear_input=sums)
    assert len(sums.sums) == 8
