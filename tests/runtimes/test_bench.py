"""phiquant bench runs outputs in llama.cpp, each in a process of its own, and states what it saw."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

import llama_cpp_peer as peer
import phiquant as pq
from phiquant.cli.entry import run
from phiquant.evaluate.benchmark import bench
from phiquant.runtimes import runtime_of, runtimes
from places import DATA

# Enough for a tiny model, where figures need not be steady.
QUICK: dict[str, Any] = {"prompt": 32, "decode": 8, "warmup": 0, "repeats": 3, "threads": 1}


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
def test_keys_and_values_take_what_the_config_says(fixture: str, converted: Any) -> None:
    config = json.loads((DATA / fixture / "config.json").read_text())
    heads = config["num_key_value_heads"]
    size = config["hidden_size"] // config["num_attention_heads"]
    wanted = 2 * config["num_hidden_layers"] * heads * size * 2  # keys and values in float16
    (one,) = bench(converted(fixture, "q4_k_m"), **QUICK).outputs
    assert one.kv_bytes_per_token == wanted


def test_keys_and_values_take_what_llama_cpp_stores(converted: Any) -> None:
    """A saved sequence is the cache's contents, and some bytes for each token's position."""
    path = converted("phi4mini", "q4_k_m")
    with runtime_of(path).load(path, context=64, threads=1, exact=False) as model:
        sizes = []
        for length in (16, 48):
            model.start(np.arange(length))
            sizes.append(llama_cpp.llama_state_seq_get_size(model._context, 0))
        each = (sizes[1] - sizes[0]) / 32
        assert model.kv_bytes_per_token is not None
        assert 0 <= each - model.kv_bytes_per_token <= 16


def test_a_started_sequence_goes_on_as_if_it_were_read_whole(converted: Any) -> None:
    path = converted("phi35", "q8_0")
    ids = np.random.default_rng(1).integers(0, 4096, 24)
    with runtime_of(path).load(path, context=64, threads=1, exact=True) as model:
        found = model.greedy(ids, 8)
        # The next prompt is a fresh sequence.
        assert model.greedy(ids, 8) == found and model.greedy(ids, 0) == []
    with peer.running(path) as other:
        assert other.greedy(ids, 8) == found


def test_memory_is_that_of_each_output_alone(converted: Any) -> None:
    """The large one runs first, and leaves nothing behind in the small one's figures."""
    large, small = converted("phi35", "f32"), converted("phi35", "q4_0")
    result = bench([large, small], **QUICK)
    first, second = result.outputs
    difference = large.stat().st_size - small.stat().st_size
    for one in (first, second):
        assert one.resident_before and one.resident_loaded and one.resident_peak
        assert one.resident_before < one.resident_loaded <= one.resident_peak
    # llama.cpp maps files, and may not have touched all of one.
    assert first.resident_peak - second.resident_peak > difference / 2  # type: ignore[operator]
    assert abs(first.resident_before - second.resident_before) < difference / 4  # type: ignore[operator]


def test_speeds_are_of_all_repeats(converted: Any) -> None:
    result = bench(converted("phi35", "q4_k_m"), **QUICK)
    (one,) = result.outputs
    for speed in (one.prompt, one.decode):
        assert len(speed.runs) == 3 and min(speed.runs) > 0
        assert (speed.least, speed.median, speed.most) == tuple(sorted(speed.runs))
    assert one.load_seconds > 0
    from importlib import metadata

    version = metadata.version("llama-cpp-python")
    assert one.runtime == f"llama.cpp (llama-cpp-python {version})"
    assert result.threads == 1
    shown = str(result)
    assert "a prompt of 32 tokens and 8 decoded" in shown and "warm-up: 0" in shown
    assert result.machine in shown and version in shown


class StoppedError(Exception):
    pass


def children() -> set[int]:
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return set(map(int, found.split()))


def test_all_threads_stay_on_the_chosen_processors(converted: Any) -> None:
    seen = set()
    before = children()

    def watch(done: int, total: int) -> None:
        (child,) = children() - before
        for task in Path(f"/proc/{child}/task").iterdir():
            match = re.search(r"^Cpus_allowed_list:\t(.*)$", (task / "status").read_text(), re.M)
            assert match
            seen.add(match[1])
        raise StoppedError

    settings = QUICK | {"prompt": 512, "decode": 4000, "repeats": 100}
    with pytest.raises(StoppedError):
        bench(converted("phi35", "f32"), **settings, progress=watch)
    processor = sorted(os.sched_getaffinity(0))[0]
    assert seen == {str(processor)}
    # Stopping ends the child, too.
    assert children() == before


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (signal.SIGKILL, pq.IoError, "llama.cpp was killed by the system"),
        (signal.SIGSEGV, pq.FormatError, r"llama.cpp crashes over it \(SIGSEGV\)"),
    ],
)
def test_a_runtime_that_dies_is_an_error_that_says_so(
    number: int, kind: type[pq.PhiquantError], words: str, converted: Any
) -> None:
    before = children()

    def watch(done: int, total: int) -> None:
        (child,) = children() - before
        os.kill(child, number)

    settings = QUICK | {"prompt": 512, "decode": 4000, "repeats": 100}
    with pytest.raises(kind, match=words):
        bench(converted("phi35", "f32"), **settings, progress=watch)


def test_what_llama_cpp_refuses_has_its_words(tmp_path: Path, converted: Any) -> None:
    data = converted("phi4mini", "q8_0").read_bytes()
    assert data.count(b"gpt-4o") == 1  # a split of text that llama.cpp knows
    model = tmp_path / "x.gguf"
    model.write_bytes(data.replace(b"gpt-4o", b"gpt-4x"))
    with pytest.raises(pq.FormatError, match=r"does not load it: .*gpt-4x") as error:
        bench(model, **QUICK)
    assert error.value.file == str(model)


def test_a_missing_runtime_is_named_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch, converted: Any
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(pq.UnsupportedError, match=r"pip install 'phiquant\[llama\]'"):
        bench(converted("phi35", "q8_0"), **QUICK)


def test_what_cannot_be_run_is_refused(tmp_path: Path, converted: Any) -> None:
    model = converted("phi35", "q8_0")
    with pytest.raises(pq.UnsupportedError, match=r"runs: .*GGUF files \(llama.cpp\)"):
        bench(DATA / "configs", **QUICK)
    with pytest.raises(pq.IoError, match="cannot be opened"):
        bench([model, tmp_path / "none.gguf"], **QUICK)
    with pytest.raises(pq.UsageError, match="the model is made for 8192"):
        bench(model, **QUICK | {"prompt": 8190})
    with pytest.raises(pq.UsageError, match=r"1000 threads on \d+ processor"):
        bench(model, **QUICK | {"threads": 1000})
    with pytest.raises(pq.UsageError, match="repeats must be a number from 1 on"):
        bench(model, **QUICK | {"repeats": 0})
    with pytest.raises(pq.UsageError, match="there is no output"):
        bench([], **QUICK)


def test_the_command_shows_outputs_side_by_side(
    tmp_path: Path, converted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(converted("phi35", preset)) for preset in ("q4_k_m", "q8_0")]
    options = ["--prompt", "32", "--decode", "8", "--repeats", "2", "--threads", "1"]
    assert run(["bench", *models, *options, "-q"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["output", *models] and not shown.err
    assert run(["bench", *models, *options, "--warmup", "0", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [one["output"] for one in facts["outputs"]] == models
    assert (facts["warmup"], facts["repeats"], facts["threads"]) == (0, 2, 1)
    assert all(len(one["decode"]["runs"]) == 2 for one in facts["outputs"])
    assert run(["bench", models[0], str(tmp_path / "none"), *options]) == 4
    assert run(["bench", str(DATA / "configs"), *options]) == 3
    assert run(["bench", models[0], "--repeats", "0"]) == 2
    assert run(["bench", models[0], *options, "--prompt", "100000"]) == 2


def test_at_most_one_runtime_recognizes_an_output(tmp_path: Path, converted: Any) -> None:
    names = {one.name: one for one in runtimes()}
    assert "llama.cpp" in names
    for path in (converted("phi35", "q8_0"), DATA / "phi35", tmp_path, DATA / "README.md"):
        assert sum(one.recognizes(path) for one in runtimes()) <= 1
    assert names["llama.cpp"].recognizes(converted("phi35", "q8_0"))
