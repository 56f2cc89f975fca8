"""Importance files: llama-imatrix's own are read to the numbers and written to the byte; lies are refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf as gguf_py
import numpy as np
import pytest

import phiquant as pq
from phiquant.measure import Activations, Importance, read_importance, write_importance
from places import DATA, FIXTURES, GOLDEN


def theirs(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a GGUF as gguf-py reads them."""
    return {tensor.name: np.array(tensor.data) for tensor in gguf_py.GGUFReader(path).tensors}


FILES = [
    *(GOLDEN / f"imatrix-{f}.gguf" for f in FIXTURES),
    *(DATA / f / "imatrix.gguf" for f in FIXTURES),
]


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_means_are_sums_by_counts(path: Path) -> None:
    wanted = theirs(path)
    found = read_importance(path)
    assert len(found) == len(wanted) // 2
    for name, values in found.items():
        assert values.dtype == np.float32
        expected = wanted[f"{name}.in_sum2"].ravel() / np.float32(wanted[f"{name}.counts"].item())
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_a_file_is_written_as_llama_imatrix_writes_it(fixture: str, tmp_path: Path) -> None:
    golden = GOLDEN / f"imatrix-{fixture}.gguf"
    out = write_importance(tmp_path / "x.gguf", read_importance(golden))
    assert out.read_bytes() == golden.read_bytes()


def test_the_old_format_holds_the_same() -> None:
    new = read_importance(GOLDEN / "imatrix-phi3win.gguf")
    old = read_importance(GOLDEN / "imatrix-phi3win.dat")
    assert list(old) == list(new)
    assert (old.datasets, old.chunks) == (("eval.txt",), 64) == (new.datasets, new.chunks)
    assert (old.chunk_size, new.chunk_size) == (0, 32)
    for name in new:
        # The old format scales by the number of chunks, which costs a rounding or two.
        np.testing.assert_allclose(old[name], new[name], rtol=3e-7)


def test_experts_have_a_row_each_and_ones_where_no_token_came(tmp_path: Path) -> None:
    sums = np.arange(6, dtype=np.float32).reshape(3, 2)
    experts = Activations(sums, np.array([2, 0, 4], np.float32))
    out = write_importance(tmp_path / "x.gguf", Importance({"e": experts}, ("a", "b"), 1, 2))
    found = read_importance(out)
    np.testing.assert_array_equal(found["e"], [[0, 0.5], [1, 1], [1, 1.25]])
    assert found.datasets == ("a", "b")
    shapes = {t.name: list(t.shape) for t in gguf_py.GGUFReader(out).tensors}
    assert shapes == {"e.in_sum2": [2, 3], "e.counts": [1, 3]}


METADATA: dict[str, Any] = {
    "general.type": "imatrix",
    "imatrix.datasets": ["text"],
    "imatrix.chunk_count": 1,
    "imatrix.chunk_size": 512,
}
GOOD = {"w.in_sum2": np.ones(4, np.float32), "w.counts": np.ones(1, np.float32)}


def changed(tensors: dict[str, Any] | None = None, **metadata: Any) -> tuple[dict[str, Any], Any]:
    keys = {key.replace("_", ".", 1): value for key, value in metadata.items()}
    values = {k: v for k, v in (METADATA | keys).items() if v is not None}
    return values, GOOD if tensors is None else tensors


LIES = {
    "a model": (changed(general_type="model"), "general.type 'model'"),
    "no type": (changed(general_type=None), "general.type None"),
    "no chunks": (changed(imatrix_chunk_count=None), "chunk_count"),
    "chunks of text": (changed(imatrix_chunk_count="many"), "chunk_count"),
    "no chunk size": (changed(imatrix_chunk_size=None), "chunk_size"),
    "datasets of numbers": (changed(imatrix_datasets=[1, 2]), "datasets"),
    "nothing": (changed({"w": np.ones(1, np.float32)}), "no sums"),
    "no counts": (changed({"w.in_sum2": np.ones(4, np.float32)}), "'w.counts' is missing"),
    "no sums": (changed({"w.counts": np.ones(1, np.float32)}), "'w.in_sum2' is missing"),
    "counts that do not divide": (
        changed(GOOD | {"w.counts": np.ones(3, np.float32)}),
        "4 sums for 3",
    ),
    "halves": (changed(GOOD | {"w.in_sum2": np.ones(4, np.float16)}), "f16, not f32"),
    "NaN": (changed(GOOD | {"w.in_sum2": np.full(4, np.nan, np.float32)}), "NaN or infinite"),
    "infinity": (changed(GOOD | {"w.counts": np.full(1, np.inf, np.float32)}), "NaN or infinite"),
    "negative": (changed(GOOD | {"w.in_sum2": -np.ones(4, np.float32)}), "negative"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_gguf_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    (metadata, tensors), words = LIES[lie]
    path = pq.gguf.write(tmp_path / "x.gguf", tensors, metadata)
    with pytest.raises((pq.FormatError, pq.UnsupportedError), match=words) as caught:
        read_importance(path)
    assert str(path) in str(caught.value)


def entry(name: bytes = b"w", calls: int = 2, values: bytes = bytes(16), count: int = 4) -> bytes:
    return struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, count) + values


def dat(*entries: bytes, count: int | None = None, tail: bytes = b"") -> bytes:
    return struct.pack("<i", len(entries) if count is None else count) + b"".join(entries) + tail


HUGE = 2**31 - 1
BAD_DATS = {
    "empty": b"",
    "three bytes": b"\1\0\0",
    "no entries": dat(),
    "negative entries": dat(entry(), count=-1),
    "two thousand million entries": dat(entry(), count=HUGE),
    "one entry too many": dat(entry(), entry(b"v"), count=3),
    "a name of no bytes": dat(entry(b""), bytes(16)),
    "a negative name": dat(struct.pack("<i", -5) + bytes(40)),
    "a huge name": dat(struct.pack("<i", HUGE) + bytes(40)),
    "a name that is no UTF-8": dat(entry(b"\xff\xfe")),
    "a name twice": dat(entry(), entry()),
    "no values": dat(entry(values=b"", count=0), bytes(16)),
    "negative values": dat(entry(count=-4)),
    "more values than bytes": dat(entry(count=5)),
    "a huge number of values": dat(entry(count=HUGE)),
    "negative calls": dat(entry(calls=-1)),
    "NaN": dat(entry(values=struct.pack("<4f", 1, 2, float("nan"), 3))),
    "a half chunk count": dat(entry(), tail=b"\1\0"),
    "a huge dataset": dat(entry(), tail=struct.pack("<ii", 1, HUGE)),
    "a negative dataset": dat(entry(), tail=struct.pack("<ii", 1, -1)),
    "bytes after the end": dat(entry(), tail=struct.pack("<ii", 1, 1) + b"xy"),
    "a text": b"What is this? It is no importance matrix but a text, and long enough to be one.",
}


@pytest.mark.parametrize("case", BAD_DATS)
def test_an_old_file_that_lies_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(BAD_DATS[case])
    with pytest.raises(pq.FormatError) as caught:
        read_importance(path)
    assert str(path) in str(caught.value)


def test_old_files_of_every_age_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    values = struct.pack("<4f", 2, 4, 6, 8)
    for tail, chunks, datasets in (
        (b"", 0, ()),
        (struct.pack("<i", 7), 7, ()),
        (struct.pack("<ii", 7, 0), 7, ()),
        (struct.pack("<ii", 7, 2) + b"ab", 7, ("ab",)),
    ):
        path.write_bytes(dat(entry(values=values), entry(b"v", calls=0, values=values), tail=tail))
        found = read_importance(path)
        np.testing.assert_array_equal(found["w"], [1, 2, 3, 4])
        np.testing.assert_array_equal(found["v"], [2, 4, 6, 8])  # llama-quantize's, too
        assert (found.chunks, found.datasets) == (chunks, datasets)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for golden in ("imatrix-phi3win.gguf", "imatrix-phi3win.dat"):
        raw = (GOLDEN / golden).read_bytes()
        # At the end stand 28 bytes of padding, or 16 of the optional chunk count and dataset.
        whole = len(raw) - (16 if golden.endswith("dat") else 28)
        for size in [*range(64), *range(64, whole, 97), whole - 1]:
            path.write_bytes(raw[:size])
            with pytest.raises(pq.FormatError):
                read_importance(path)


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    importance = read_importance(GOLDEN / "imatrix-phi3win.gguf")
    path = write_importance(tmp_path / "x.gguf", importance)
    with pytest.raises(pq.UsageError):
        write_importance(path, importance)
    write_importance(path, importance, overwrite=True)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pq.IoError):
        read_importance(tmp_path / "absent")
    with pytest.raises(pq.FormatError):
        read_importance(tmp_path)
