"""Quality "best": less weighted squared error than ggml's own bits, in as many bytes of the same formats.

Errors are those of what ggml itself decodes (the ``libggml-base`` of the installed llama-cpp-python)
against the fixtures' trained weights, summed in float64. Without importance all errors count alike;
with it, each column's counts by the fixture's recorded importance.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import phiquant as pq
from llama_cpp_peer import ggml_base, running
from phiquant import _core
from phiquant.measure.imatrix import read_importance
from places import DATA

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# codec: (ggml's name, most of ggml's error that may be left on average, the same with importance).
# The shares are deterministic; the bounds are the measured ones, rounded up by up to one point. With
# importance ggml searches, too, and in q3_k and q4_0 finds nearly all that the formats allow: not even
# the best real scale of each sub-block leaves less than 0.97 (tests/benchmarks/best_limits.py).
CODECS: dict[str, tuple[str, float, float]] = {
    "q2_k": ("q2_K", 0.76, 0.925),
    "q3_k": ("q3_K", 0.91, 0.985),
    "q4_0": ("q4_0", 0.89, 0.98),
    "q4_k": ("q4_K", 0.94, 0.95),
    "q5_k": ("q5_K", 0.865, 0.89),
    "q6_k": ("q6_K", 0.895, 0.93),
    "iq4_nl": ("iq4_nl", 0.93, 0.95),
    "iq4_xs": ("iq4_xs", 0.925, 0.94),
}
FIXTURES = ("phi35", "phi4mini")
ROLES = {
    "gate_up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "o_proj": "attn_output",
    "qkv_proj": "attn_qkv",
}
ARCHS = _core.available_archs()


@functools.cache
def matrices(fixture: str) -> dict[str, Floats]:
    """A fixture's matrices; of the largest ones, rows enough for a sound comparison."""
    model = pq.open(DATA / fixture)
    found = {}
    for name, entry in model.entries.items():
        if len(entry.shape) == 2:
            values = np.asarray(model[name], np.float32)
            found[name] = np.ascontiguousarray(values[:512])
    return found


@functools.cache
def importance_of(fixture: str, name: str) -> Floats | None:
    """Weights of the matrix's columns, where the fixture's importance matrix has them."""
    recorded = read_importance(DATA / fixture / "imatrix.gguf")
    parts = name.split(".")
    if parts[1] != "layers":
        return None
    key = f"blk.{parts[2]}.{ROLES[parts[-2]]}.weight"
    return np.ascontiguousarray(recorded[key], np.float32).ravel() if key in recorded else None


def ggml_decode(codec: str, blocks: Bytes, columns: int) -> Floats:
    out = np.zeros((blocks.shape[0], columns), np.float32)
    function = getattr(ggml_base(), f"dequantize_row_{CODECS[codec][0]}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(blocks.ctypes.data, out.ctypes.data, out.size)
    return out


def ggml_encode(codec: str, w: Floats, importance: Floats | None) -> Bytes:
    """The bytes of llama-quantize's own search."""
    out = np.zeros((w.shape[0], _core.block_bytes(codec, 1, w.shape[1])), np.uint8)
    function = getattr(ggml_base(), f"quantize_{CODECS[codec][0]}")
    function.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, pointer, count, count, pointer]
    weights = None if importance is None else importance.ctypes.data
    assert function(w.ctypes.data, out.ctypes.data, *w.shape, weights) == out.size
    return out


def error_of(codec: str, blocks: Bytes, w: Floats, importance: Floats | None) -> float:
    """Weighted squared error of what ggml decodes from the blocks."""
    squares = (ggml_decode(codec, blocks, w.shape[1]).astype(np.float64) - w) ** 2
    return float(squares.sum() if importance is None else (squares @ importance).sum())


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_error_is_below_ggmls_on_every_matrix(codec: str, weighted: bool) -> None:
    shares = []
    for fixture in FIXTURES:
        for name, w in matrices(fixture).items():
            importance = importance_of(fixture, name) if weighted else None
            if weighted and importance is None:
                continue
            best = _core.encode_blocks(codec, w, importance=importance, best=True)
            reference = ggml_encode(codec, w, importance)
            assert best.shape == reference.shape
            ours = error_of(codec, best, w, importance)
            shares.append(ours / error_of(codec, reference, w, importance))
            assert shares[-1] < 1, f"{fixture} {name}"
    assert len(shares) >= 30
    assert np.mean(shares) < CODECS[codec][2 if weighted else 1]


def hard_weights() -> Floats:
    """What searches may stumble on, in rows of their own, and an odd number of super-blocks."""
    rng = np.random.default_rng(7)
    w = rng.standard_normal((23, 3 * 256)).astype(np.float32)
    w[0] = 0
    w[1] = 1.5
    w[2] = -0.25
    w[3] *= 1e-30
    w[4] *= 1e-42
    w[5] *= 2e4
    w[6, ::7] = 60000
    w[7] = np.abs(w[7])
    w[8] = -np.abs(w[8])
    w[9, 1:] = 0
    w[10, :256] = 0
    w[11] = np.where(np.arange(768) % 2, 1, -1)
    w[12] = np.linspace(-1, 1, 768)
    w[13] *= 1e-8
    w[14, 5] = -0.0
    w[15] = rng.standard_t(2, 768)
    return w


@pytest.mark.parametrize("codec", CODECS)
def test_every_instruction_set_finds_the_same_bytes(codec: str) -> None:
    w = hard_weights()
    rng = np.random.default_rng(8)
    importance = rng.standard_exponential(w.shape[1]).astype(np.float32)
    importance[64:128] = 0
    for weights in (None, importance, np.zeros_like(importance), importance * np.float32(1e-20)):
        found = {a: _core.encode_blocks(codec, w, a, None, weights, best=True) for a in ARCHS}
        for arch in ARCHS[1:]:
            assert found[arch].tobytes() == found[ARCHS[0]].tobytes(), arch


@pytest.mark.parametrize("codec", CODECS)
def test_threads_and_tiles_leave_the_bytes_alone(codec: str) -> None:
    w = np.tile(hard_weights(), (12, 1))
    importance = np.linspace(0.1, 2, w.shape[1], dtype=np.float32)
    one = pq.quantize(w, codec, quality="best", importance=importance, threads=1)
    many = pq.quantize(w, codec, quality="best", importance=importance, threads=3)
    assert one.data.tobytes() == many.data.tobytes()
    for row in (0, 6, 40):
        alone = pq.quantize(w[row], codec, quality="best", importance=importance)
        assert alone.data.tobytes() == one.data[row].tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_no_row_is_worse_and_ggml_decodes_the_same(codec: str) -> None:
    w = hard_weights()
    best = _core.encode_blocks(codec, w, best=True)
    reference = _core.encode_blocks(codec, w)
    decoded = ggml_decode(codec, best, w.shape[1])
    assert _core.decode_blocks(codec, best, w.shape[1]).tobytes() == decoded.tobytes()
    assert np.isfinite(decoded).all()
    squares = ((decoded.astype(np.float64) - w) ** 2).sum(axis=1)
    plain = ((ggml_decode(codec, reference, w.shape[1]).astype(np.float64) - w) ** 2).sum(axis=1)
    # A block is replaced when float32 sums say so: equal errors may differ by their rounding.
    assert (squares <= plain * (1 + 1e-5)).all()
    assert not decoded[0].any()


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_not_finite_is_refused(codec: str) -> None:
    w = np.ones((2, 256), np.float32)
    w[1, 3] = np.nan
    with pytest.raises(pq.ValueRangeError, match=r"NaN at \[1, 3\]"):
        pq.quantize(w, codec, quality="best")


def test_codecs_without_a_search_are_refused_before_any_work(tmp_path: Path) -> None:
    w = np.ones((2, 256), np.float32)
    for codec in ("f16", "q8_0", "mxfp4"):
        with pytest.raises(pq.UnsupportedError, match=rf"best.* for {codec}"):
            pq.quantize(w, codec, quality="best")
    with pytest.raises(pq.UnsupportedError, match=r"best.* for q8_0"):
        pq.convert(DATA / "phi35", "q8_0", tmp_path / "x.gguf", quality="best")
    assert list(tmp_path.iterdir()) == []
    assert {codec.name for codec in pq.all_codecs() if codec.has_best} == set(CODECS)


@pytest.mark.parametrize("preset", ["q4_k_m", "q4_0", "iq4_xs"])
def test_llama_cpp_runs_the_best_gguf(preset: str, tmp_path: Path) -> None:
    paths = {}
    for quality in ("reference", "best"):
        paths[quality] = tmp_path / f"{quality}.gguf"
        pq.convert(DATA / "phi4mini", preset, paths[quality], quality=quality)
    sizes = {path.stat().st_size for path in paths.values()}
    assert len(sizes) == 1
    ids = list(range(5, 45))
    logits = {}
    for quality, path in paths.items():
        with running(path) as run:
            logits[quality] = run.logits(ids, 8)
    assert np.isfinite(logits["best"]).all()
    # The same model with other roundings: near, not equal.
    assert 0 < float(np.abs(logits["best"] - logits["reference"]).mean()) < 1
