"""The calls `quantize` and `dequantize`: values, threads, the GIL, Ctrl-C, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import child_signals
import phiquant as pq

CODECS = [codec.name for codec in pq.all_codecs() if not codec.needs_importance]
FLOATS = ["f32", "f16", "bf16"]
BLOCKS = [name for name in CODECS if name not in FLOATS]
# A tile has 65536 values: shapes of several tiles, of rows longer than one, and of odd edges.
SHAPES = [(67, 2048), (3, 65536 + 256), (2, 3, 5, 512), (65536 * 2 + 512,)]


def weights(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(11).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_number_of_threads_changes_nothing(codec: str, shape: tuple[int, ...]) -> None:
    w = weights(*shape)
    one = pq.quantize(w, codec, threads=1)
    values = one.dequantize(threads=1)
    assert values.shape == shape
    for threads in (2, 7, None):
        again = pq.quantize(w, codec, threads=threads)
        np.testing.assert_array_equal(again.data, one.data)
        np.testing.assert_array_equal(again.dequantize(threads=threads), values)


def test_a_result_says_what_it_is() -> None:
    w = weights(4, 6, 64)
    q = pq.quantize(w, "Q8_0")
    assert (q.codec.name, q.shape, q.data.shape) == ("q8_0", (4, 6, 64), (4, 6, 68))
    assert q.data.dtype == np.uint8
    assert q.nbytes == 4 * 6 * 68
    assert q.bits_per_weight == 8.5
    assert "q8_0" in repr(q)


@pytest.mark.parametrize("codec", CODECS)
def test_decoding_to_narrow_types_rounds_the_float32_values(codec: str) -> None:
    q = pq.quantize(weights(4, 512), codec)
    values = q.dequantize()
    assert values.dtype == np.float32
    for narrow in (np.float16, ml_dtypes.bfloat16):
        decoded = q.dequantize(narrow)
        np.testing.assert_array_equal(decoded, values.astype(narrow))
    with pytest.raises(pq.UsageError, match="not float64"):
        q.dequantize(np.float64)


@pytest.mark.parametrize("codec", CODECS)
def test_the_error_is_that_of_the_decoded_values(codec: str) -> None:
    w = weights(16, 512)
    q = pq.quantize(w, codec)
    difference = q.dequantize().astype(np.float64) - w
    expected = np.sqrt(np.sum(difference**2) / np.sum(w.astype(np.float64) ** 2))
    # Sums in float32 on one side, in float64 on the other.
    assert q.error(w) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert q.error(torch.from_numpy(w)) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    with pytest.raises(pq.ShapeError):
        q.error(w[:-1])


@pytest.mark.parametrize("codec", BLOCKS)
def test_rows_must_hold_whole_blocks(codec: str) -> None:
    block = next(c.block_values for c in pq.all_codecs() if c.name == codec)
    with pytest.raises(pq.ShapeError, match=f"{block // 2} columns.*multiples of {block}"):
        pq.quantize(weights(4, block // 2), codec)
    with pytest.raises(pq.ShapeError, match=f"multiples of {block}"):
        pq.quantize(weights(4, block + 1), codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_by_its_index(codec: str, bad: float) -> None:
    word = {"nan": "NaN", "inf": "infinity", "-inf": "-infinity"}[str(bad)]
    for shape, at in (((70, 1024), (68, 1000)), ((2, 65536 * 2), (1, 65536 + 33))):
        w = weights(*shape)
        w[at] = bad
        with pytest.raises(pq.ValueRangeError, match=rf"holds {word} at \[{at[0]}, {at[1]}\]"):
            pq.quantize(w, codec)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_what_is_not_finite_is_found_in_narrow_types(dtype: Any) -> None:
    w = weights(4, 256).astype(dtype)
    w[3, 17] = np.inf
    with pytest.raises(pq.ValueRangeError, match=r"infinity at \[3, 17\]"):
        pq.quantize(w, "q4_k")


def test_float_codecs_keep_zeros_signs_and_subnormals() -> None:
    tiny = np.finfo(np.float32).smallest_subnormal
    w = np.array([[-0.0, 0.0, tiny, -tiny, 6e-8, -6e-8, 1e-40, 65504.0]], np.float32)
    assert pq.quantize(w, "f32").data.tobytes() == w.tobytes()
    # Rounded to nearest even, as NumPy and ml_dtypes do it: subnormals of the narrow types, too.
    assert pq.quantize(w, "f16").data.tobytes() == w.astype(np.float16).tobytes()
    assert pq.quantize(w, "bf16").data.tobytes() == w.astype(ml_dtypes.bfloat16).tobytes()
    for codec in FLOATS:
        decoded = pq.quantize(w, codec).dequantize()
        np.testing.assert_array_equal(np.signbit(decoded), np.signbit(w))


@pytest.mark.parametrize("codec", BLOCKS)
def test_zeros_of_both_signs_stay_zeros(codec: str) -> None:
    w = np.zeros((2, 512), np.float32)
    w[:, ::3] = -0.0
    assert not pq.quantize(w, codec).dequantize().any()


@pytest.mark.parametrize("codec", BLOCKS)
def test_subnormal_blocks_decode_to_finite_values(codec: str) -> None:
    w = (weights(2, 512) * np.float32(1e-39)).astype(np.float32)
    decoded = pq.quantize(w, codec).dequantize()
    # Their scale is below float16's smallest step (6e-8): nothing can be left of them.
    assert np.abs(decoded).max() <= 6e-8 * 128


def test_subnormals_in_a_block_have_the_bits_of_gguf_py() -> None:
    w = (weights(2, 512) * np.float32(1e-39)).astype(np.float32)
    # One normal value a block: below that, the scale's inverse is infinite and codes are undefined.
    w[:, ::32] = 1e-36
    expected = gguf.quants.quantize(w, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(pq.quantize(w, "q8_0").data, expected)


# Scales of their own: mxfp4's are powers of two up to 2^127, and nvfp4's, as ggml makes them, stop
# at 448 and let larger values saturate.
FP4 = ("mxfp4", "nvfp4")


def one_large(value: float) -> NDArray[np.float32]:
    w = weights(4, 512)
    w[2, 300] = value
    return w


@pytest.mark.parametrize(
    ("codec", "value"),
    [("f16", 65520.0), ("f16", -1e38), ("bf16", 3.4e38)]
    + [(codec, sign * 1e38) for codec in BLOCKS if codec not in FP4 for sign in (1, -1)],
)
def test_values_that_a_codec_cannot_hold_are_named(codec: str, value: float) -> None:
    with pytest.raises(pq.ValueRangeError, match=rf"at \[2, \d+\], which {codec} cannot hold"):
        pq.quantize(one_large(value), codec)


@pytest.mark.parametrize(
    ("codec", "value"), [("f16", 65519.0), ("bf16", 3.38e38), ("f32", 3.4028234e38)]
)
def test_the_largest_values_are_held(codec: str, value: float) -> None:
    w = one_large(value)
    dtype = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32}[codec]
    assert pq.quantize(w, codec).data.tobytes() == w.astype(dtype).tobytes()


@pytest.mark.parametrize("codec", [c for c in BLOCKS if c not in (*FP4, "q1_0")])
def test_what_is_large_but_fits_is_held(codec: str) -> None:
    # 60000 as the largest value needs a scale of a few thousand, and a minimum below 65504.
    decoded = pq.quantize(one_large(60000.0), codec).dequantize()
    assert np.isfinite(decoded).all()
    # ggml stores iq1_m's scales 1.1125 times as large as fitted.
    assert decoded[2, 300] == pytest.approx(60000.0, rel=0.1 if codec != "iq1_m" else 0.12)


def test_what_is_not_built_or_unknown_is_refused() -> None:
    w = weights(4, 256)
    with pytest.raises(pq.UnsupportedError, match='quality="best" is not to be had for q8_0'):
        pq.quantize(w, "q8_0", quality="best")
    with pytest.raises(pq.UsageError, match="there is no quality 'fast'"):
        pq.quantize(w, "q4_k", quality="fast")
    with pytest.raises(pq.UsageError, match=r"q4_kk.*q4_k"):
        pq.quantize(w, "q4_kk")


@pytest.mark.parametrize("threads", [0, -1, 1025, 2.0, "2", True])
def test_threads_is_a_sensible_number(threads: Any) -> None:
    with pytest.raises(pq.UsageError, match="from 1 to 1024"):
        pq.quantize(weights(4, 256), "q4_k", threads=threads)


def test_progress_rises_to_the_end() -> None:
    seen: list[int] = []
    w = weights(64, 65536)
    pq.quantize(w, "q4_k", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == w.size


def test_an_error_in_progress_stops_the_work() -> None:
    def fail(done: int) -> None:
        raise ZeroDivisionError(done)

    with pytest.raises(ZeroDivisionError):
        pq.quantize(weights(64, 65536), "q6_k", progress=fail)


def test_other_threads_of_python_run_meanwhile() -> None:
    w = weights(64, 65536)
    count, stop, started = [0], threading.Event(), threading.Event()

    def tick() -> None:
        while not stop.is_set():
            count[0] += 1
            started.set()
            time.sleep(0)  # hands the GIL back

    before = sys.getswitchinterval()
    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        started.wait()
        # From here on the GIL is not taken away from this thread: it must be given.
        sys.setswitchinterval(60)
        counted = count[0]
        pq.quantize(w, "q6_k")
        counted = count[0] - counted
    finally:
        sys.setswitchinterval(before)
        stop.set()
        ticker.join()
    assert counted > 1


def test_calls_from_several_threads_do_not_disturb_each_other() -> None:
    arrays = [weights(16, 4096) * (i + 1) for i in range(8)]
    expected = [pq.quantize(w, "q4_k", threads=1).data for w in arrays]
    found: list[Any] = [None] * len(arrays)

    def work(i: int) -> None:
        found[i] = pq.quantize(arrays[i], "q4_k", threads=2).data

    team = [threading.Thread(target=work, args=(i,)) for i in range(len(arrays))]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("codec", CODECS)
def test_an_array_that_changes_meanwhile_harms_nobody(codec: str) -> None:
    # Which values are seen is undefined, NaN among them; memory must stay sound.
    w = weights(64, 16384)
    stop = threading.Event()

    def disturb() -> None:
        rows = [np.full(16384, value, np.float32) for value in (1e30, np.nan, -1.0)]
        step = 0
        while not stop.is_set():
            w[step % 64] = rows[step % 3]
            step += 1

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for _ in range(5):
            try:
                assert pq.quantize(w, codec).shape == w.shape
            except pq.ValueRangeError:
                pass
    finally:
        stop.set()
        disturber.join()


INTERRUPTED = textwrap.dedent(
    """
    import os, signal, threading, time
    import numpy as np
    import phiquant as pq

    # One row, many times: hours of work for one core, and no memory but what is written.
    w = np.broadcast_to(np.linspace(-1, 1, 4096, dtype=np.float32), (WIDTH, 4096))
    running = threading.Event()
    sent = []

    def interrupt():
        running.wait()
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        pq.quantize(w, "q6_k", threads=THREADS, progress=lambda done: running.set())
    except KeyboardInterrupt:
        print(time.monotonic() - sent[0])
    else:
        print("it came to its end")
    """
)


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_long_call_within_a_second(threads: int) -> None:
    code = INTERRUPTED.replace("THREADS", str(threads)).replace("WIDTH", "1 << 20")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=child_signals.heed,
    )
    assert float(done.stdout) < 1.0


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_errors_of_huge_and_tiny_weights_are_told(size):
    w = (np.random.default_rng(5).normal(0, 1, (64, 256)) * size).astype(np.float32)
    assert 0.001 < pq.quantize(w, "bf16").error(w) < 0.003
