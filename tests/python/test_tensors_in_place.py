"""Other people's tensors: read where they stand, or refused with a reason; results lent without a copy."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from dlpack_loan import BFLOAT, COMPLEX, CUDA, FLOAT, INT, Lender, Loan
from numpy.typing import NDArray

import phiquant as pq
from phiquant import _core

# The JAX that knows DLPack 1 needs Python 3.11.
needs_jax = pytest.mark.skipif(sys.version_info < (3, 11), reason="JAX has no such version")


def weights(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal(shape, dtype=np.float32)


def oracle(w: Any) -> NDArray[np.uint8]:
    """q8_0's blocks as gguf-py makes them."""
    blocks: NDArray[np.uint8] = gguf.quants.quantize(
        np.ascontiguousarray(w, dtype=np.float32), gguf.GGMLQuantizationType.Q8_0
    )
    return blocks


def read_only(w: NDArray[np.float32]) -> NDArray[np.float32]:
    w.flags.writeable = False
    return w


def mapped(w: NDArray[np.float32], tmp_path: Path) -> NDArray[np.float32]:
    path = tmp_path / "w.bin"
    w.tofile(path)
    return np.memmap(path, dtype=np.float32, mode="r", shape=w.shape)


def unaligned(w: NDArray[np.float32]) -> NDArray[np.float32]:
    raw = b"\0" + w.tobytes()
    return np.frombuffer(raw, dtype=np.float32, offset=1).reshape(w.shape)


IN_PLACE: dict[str, Callable[[Path], NDArray[np.float32]]] = {
    "contiguous": lambda _: weights(5, 96),
    "one axis": lambda _: weights(96),
    "three axes": lambda _: weights(3, 5, 96),
    "one row in Fortran's order": lambda _: np.asfortranarray(weights(1, 96)),
    "read-only": lambda _: read_only(weights(5, 96)),
    "every other row": lambda _: weights(10, 96)[::2],
    "rows from last to first": lambda _: weights(5, 96)[::-1],
    "columns cut out": lambda _: weights(5, 192)[:, 33:129],
    "transposed leading axes": lambda _: weights(3, 5, 96).transpose(1, 0, 2),
    "every axis odd": lambda _: weights(6, 10, 192)[::-2, 1::3, 7:103],
    "one row many times": lambda _: np.broadcast_to(weights(96), (5, 96)),
    "memory-mapped": lambda path: mapped(weights(5, 96), path),
    "odd addresses": lambda _: unaligned(weights(5, 96)),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_numpy_arrays_are_read_in_place(kind: str, tmp_path: Path) -> None:
    w = IN_PLACE[kind](tmp_path)
    facts = _core.tensor_facts(w)
    assert facts["pointer"] == w.ctypes.data
    assert facts["shape"] == w.shape
    assert facts["strides"] == w.strides
    assert facts["codec"] == "f32"
    before = w.tobytes()
    q = pq.quantize(w, "q8_0")
    np.testing.assert_array_equal(q.data, oracle(w))
    assert q.shape == w.shape
    assert w.tobytes() == before


def test_float16_is_read_in_place() -> None:
    w = weights(5, 192).astype(np.float16)[::2, 32:128]
    facts = _core.tensor_facts(w)
    assert (facts["pointer"], facts["codec"]) == (w.ctypes.data, "f16")
    np.testing.assert_array_equal(pq.quantize(w, "q8_0").data, oracle(w))


def test_bfloat16_of_ml_dtypes_is_read_in_place() -> None:
    w = read_only(weights(5, 192).astype(ml_dtypes.bfloat16)[::-2, 32:128])
    facts = _core.tensor_facts(w)
    assert (facts["pointer"], facts["codec"]) == (w.ctypes.data, "bf16")
    assert facts["strides"] == w.strides
    np.testing.assert_array_equal(pq.quantize(w, "q8_0").data, oracle(w))


@pytest.mark.parametrize(
    "codec", [codec.name for codec in pq.all_codecs() if not codec.needs_importance]
)
def test_bfloat16_gives_what_its_values_give_in_float32(codec: str) -> None:
    w = weights(3, 1024).astype(ml_dtypes.bfloat16)
    expected = pq.quantize(w.astype(np.float32), codec).data
    np.testing.assert_array_equal(pq.quantize(w, codec).data, expected)


@pytest.mark.parametrize(
    ("dtype", "codec"),
    [(torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")],
)
def test_torch_tensors_are_read_in_place(dtype: torch.dtype, codec: str) -> None:
    whole = torch.from_numpy(weights(4, 6, 192)).to(dtype)
    for w in (whole, whole[1], whole[:, ::2, 32:128], whole.transpose(0, 1)):
        facts = _core.tensor_facts(w)
        assert facts["pointer"] == w.data_ptr()
        assert facts["shape"] == tuple(w.shape)
        assert facts["strides"] == tuple(s * w.element_size() for s in w.stride())
        assert facts["codec"] == codec
        np.testing.assert_array_equal(pq.quantize(w, "q8_0").data, oracle(w.float().numpy()))


@needs_jax
@pytest.mark.parametrize(
    ("dtype", "codec"), [("float32", "f32"), ("float16", "f16"), ("bfloat16", "bf16")]
)
def test_jax_arrays_are_read_in_place(dtype: str, codec: str) -> None:
    import jax.numpy as jnp

    w = jnp.asarray(weights(5, 96)).astype(dtype)
    facts = _core.tensor_facts(w)
    assert (facts["pointer"], facts["codec"]) == (w.unsafe_buffer_pointer(), codec)
    np.testing.assert_array_equal(pq.quantize(w, "q8_0").data, oracle(w))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "Fortran's order": (lambda: np.asfortranarray(weights(5, 96)), "ascontiguousarray"),
    "transposed": (lambda: weights(96, 32).T, "stride of 128 bytes"),
    "every other column": (lambda: weights(5, 192)[:, ::2], "stride of 8 bytes"),
    "columns from last to first": (lambda: weights(5, 96)[:, ::-1], "stride of -4 bytes"),
    "torch, transposed": (lambda: torch.zeros(96, 32).T, r"w\.contiguous\(\)"),
    "torch, one value many times": (lambda: torch.zeros(1).expand(96), "stride of 0 bytes"),
    "float64": (lambda: np.zeros((5, 96)), "dtype is float64.*astype"),
    "torch float64": (lambda: torch.zeros(5, 96, dtype=torch.float64), "dtype is float64"),
    "int8": (lambda: np.zeros((5, 96), np.int8), "dtype is int8"),
    "torch int32": (lambda: torch.zeros(5, 96, dtype=torch.int32), "dtype is int32"),
    "bool": (lambda: np.zeros((5, 96), bool), "dtype is bool"),
    "complex": (lambda: np.zeros((5, 96), np.complex64), "dtype is complex64"),
    "torch complex": (lambda: torch.zeros(5, 96, dtype=torch.complex64), "DLPack type code 5"),
    "object": (lambda: np.full((5, 96), 1.0, object), "dtype is object"),
    "words": (lambda: np.full((5, 96), "1.0"), "dtype is str"),
    "float8": (lambda: np.zeros((5, 96), ml_dtypes.float8_e4m3fn), "dtype is float8_e4m3fn"),
    "big-endian": (lambda: weights(5, 96).astype(">f4"), "byte order.*newbyteorder"),
    "no row": (lambda: weights(0, 96), "is empty"),
    "no column": (lambda: weights(5, 0), "is empty"),
    "torch, no row": (lambda: torch.zeros(0, 96), "is empty"),
    "no axis": (lambda: np.array(1.0, np.float32), "has no axis"),
    "torch, no axis": (lambda: torch.tensor(1.0), "has no axis"),
    "a list": (lambda: [[1.0] * 32], "got list.*numpy.asarray"),
    "nothing": (lambda: None, "got NoneType"),
    "a number": (lambda: 1.0, "got float"),
    "a number of NumPy's": (lambda: np.float32(1.0), "got float32"),
    "bytes": (lambda: bytes(128), "got bytes"),
    "a masked array": (lambda: np.ma.masked_less(weights(5, 96), 0.0), r"is masked.*filled"),
    "torch with gradients": (lambda: torch.ones(5, 96, requires_grad=True), r"w\.detach\(\)"),
    "torch, sparse": (lambda: torch.eye(96).to_sparse(), "__dlpack__ refused"),
    "torch, conjugated": (
        lambda: torch.zeros(5, 96, dtype=torch.complex64).conj(),
        "__dlpack__ refused",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_in_place_is_refused(kind: str) -> None:
    make, words = REFUSED[kind]
    for codec in ("q8_0", "f32"):
        with pytest.raises(pq.ShapeError, match=words) as caught:
            pq.quantize(make(), codec)
        assert caught.value.remedy
        assert isinstance(caught.value, ValueError)


@needs_jax
def test_jax_integers_are_refused() -> None:
    import jax.numpy as jnp

    with pytest.raises(pq.ShapeError, match="dtype is int32"):
        pq.quantize(jnp.zeros((5, 96), dtype="int32"), "q8_0")


@pytest.mark.parametrize("versioned", [True, False])
def test_a_capsule_is_taken_once_and_given_back_once(versioned: bool) -> None:
    w = weights(5, 96)
    loan = Loan(w, versioned=versioned)
    np.testing.assert_array_equal(pq.quantize(loan.capsule, "q8_0").data, oracle(w))
    assert loan.taken()
    assert loan.returned == 1
    with pytest.raises(pq.ShapeError, match=r"used already.*once more"):
        pq.quantize(loan.capsule, "q8_0")
    del loan.capsule
    gc.collect()
    assert loan.returned == 1


def test_a_capsule_s_strides_and_offset_are_honoured() -> None:
    w = weights(6, 192)
    loan = Loan(w, shape=(3, 96), strides=(384, 1), byte_offset=32 * 4)
    facts = _core.tensor_facts(loan.capsule)
    assert facts["pointer"] == w.ctypes.data + 128
    assert facts["strides"] == (1536, 4)
    loan = Loan(w, shape=(3, 96), strides=(384, 1), byte_offset=32 * 4)
    np.testing.assert_array_equal(pq.quantize(loan.capsule, "q8_0").data, oracle(w[::2, 32:128]))


def test_producers_older_than_dlpack_1_are_asked_again() -> None:
    w = weights(5, 96)
    old = Lender(Loan(w, versioned=False), knows_versions=False)
    np.testing.assert_array_equal(pq.quantize(old, "q8_0").data, oracle(w))
    assert old.asked == [{"max_version": (1, 1), "copy": False}, {}]
    assert old.loan.returned == 1


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"device": CUDA}, r"another device \(DLPack device type 2\).*w\.cpu\(\)"),
        ({"device": CUDA, "versioned": False}, "another device"),
        ({"dtype": (FLOAT, 64, 1)}, "dtype is float64"),
        ({"dtype": (INT, 8, 1)}, "dtype is int8"),
        ({"dtype": (BFLOAT, 32, 1)}, "dtype is bfloat32"),
        ({"dtype": (FLOAT, 32, 4)}, "4 lanes"),
        ({"dtype": (COMPLEX, 64, 1)}, "type code 5"),
        ({"dtype": (99, 32, 1)}, "type code 99"),
        ({"shape": ()}, "no axis"),
        ({"shape": (0, 96)}, "is empty"),
        ({"shape": (5, -96)}, "negative extent"),
        ({"shape": (1,) * 65}, "65 axes"),
        ({"strides": (96, 2)}, "stride of 8 bytes"),
    ],
)
def test_a_refused_capsule_is_given_back(lie: dict[str, Any], words: str) -> None:
    loan = Loan(weights(5, 96), **lie)
    with pytest.raises(pq.ShapeError, match=words):
        pq.quantize(loan.capsule, "q8_0")
    assert loan.returned == 1
    del loan.capsule
    gc.collect()
    assert loan.returned == 1


@pytest.mark.parametrize("major", [0, 2])
def test_other_major_versions_are_left_to_their_owner(major: int) -> None:
    # The rest of the struct may mean something else there, so it isn't even taken.
    loan = Loan(weights(5, 96), major=major)
    with pytest.raises(pq.ShapeError, match=f"speaks DLPack {major}; phiquant reads version 1"):
        pq.quantize(loan.capsule, "q8_0")
    assert not loan.taken()
    assert loan.returned == 0
    del loan.capsule
    gc.collect()
    assert loan.returned == 1


def test_an_error_of_the_values_gives_the_capsule_back() -> None:
    loan = Loan(np.full((5, 96), np.nan, np.float32))
    with pytest.raises(pq.ValueRangeError):
        pq.quantize(loan.capsule, "q8_0")
    assert loan.returned == 1


def test_other_errors_of_a_producer_pass_unchanged() -> None:
    class Broken:
        def __dlpack__(self, **options: Any) -> Any:
            raise ZeroDivisionError("its own bug")

    with pytest.raises(ZeroDivisionError, match="its own bug"):
        pq.quantize(Broken(), "q8_0")


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the resident memory")
@pytest.mark.parametrize("kind", ["array", "capsule", "torch", "refused", "values"])
def test_a_thousand_calls_keep_nothing(kind: str) -> None:
    w = weights(64, 1024)
    lent = torch.from_numpy(w)
    wrong = np.asfortranarray(w)
    bad = w.copy()
    bad[-1, -1] = np.inf

    def call() -> None:
        if kind == "array":
            pq.quantize(w, "q8_0", threads=1).dequantize(threads=1)
        elif kind == "capsule":
            loan = Loan(w)
            pq.quantize(loan.capsule, "q8_0", threads=1)
            assert loan.returned == 1
        elif kind == "torch":
            pq.quantize(lent, "q8_0", threads=1)
        else:
            with pytest.raises(pq.PhiquantError):
                pq.quantize(wrong if kind == "refused" else bad, "q8_0", threads=1)

    for _ in range(50):
        call()
    references = sys.getrefcount(w)
    gc.collect()
    before = resident()
    for _ in range(1000):
        call()
    gc.collect()
    assert sys.getrefcount(w) == references
    # One result is 68 KiB: keeping them would take 68 MB. The allowance is the allocator's.
    assert resident() - before < 16 << 20


@pytest.mark.parametrize("codec", ["q8_0", "q4_k", "f32"])
def test_results_are_lent_without_a_copy(codec: str) -> None:
    q = pq.quantize(weights(5, 256), codec)
    for array in (q.data, q.dequantize()):
        address = array.ctypes.data
        assert np.from_dlpack(array).ctypes.data == address
        tensor = torch.from_dlpack(array)
        assert tensor.data_ptr() == address
        np.testing.assert_array_equal(tensor.numpy(), array)
    # The array outlives what it came from.
    data = np.from_dlpack(q.data)
    expected = q.data.copy()
    del q
    gc.collect()
    np.testing.assert_array_equal(data, expected)
