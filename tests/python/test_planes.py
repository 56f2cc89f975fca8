"""Codecs that are written in planes: their packing against NumPy's, in memory and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import phiquant as pq
from phiquant import _core
from phiquant.codecs import find_codec
from phiquant.plan import Plan, PlannedFile, PlannedTarget, PlannedTensor
from tiny_model import config_of, weights_of, write_model

GROUPS = ("g16", "g32", "g64", "g128", "g256", "channel")
SEED = np.random.default_rng(7)


def matrix(rows: int = 48, columns: int = 256) -> NDArray[np.float32]:
    return SEED.normal(scale=0.02, size=(rows, columns)).astype(np.float32)


def bit_stream(codes: NDArray[np.integer], bits: int) -> bytes:
    """Codes along the last axis, low bits first, each row filled up to a byte."""
    ones = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1
    flat = ones.reshape(*codes.shape[:-1], -1).astype(np.uint8)
    return np.packbits(flat, axis=-1, bitorder="little").tobytes()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", ["sym", "asym"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_planes_hold_the_codes_as_their_layout_says(bits: int, kind: str, group: str) -> None:
    w = matrix()
    name = f"int{bits}_{kind}_{group}"
    rows = pq.quantize(w, name)
    codes = rows.codes.astype(np.int64)
    assert codes.shape == w.shape and codes.max() < 2**bits
    assert rows.data.tobytes() == bit_stream(codes, bits)
    assert np.array_equal(rows.planes[1].view(np.float32).reshape(48, -1), rows.scales)

    openvino = pq.quantize(w, name + ",layout=openvino")
    stored = (codes - 2 ** (bits - 1)) if kind == "sym" else codes
    assert openvino.data.tobytes() == bit_stream((stored % 2**bits).reshape(1, -1), bits)

    transposed = pq.quantize(w, name + ",layout=transposed")
    assert transposed.data.tobytes() == bit_stream((stored % 2**bits).T, bits)
    assert np.array_equal(transposed.planes[1].view(np.float32).reshape(-1, 48), rows.scales.T)
    if kind == "asym":
        zeros = rows.zero_points
        assert zeros is not None
        assert rows.planes[2].tobytes() == bit_stream(zeros, bits)
        assert openvino.planes[2].tobytes() == bit_stream(zeros.reshape(1, -1), bits)
        assert transposed.planes[2].tobytes() == bit_stream(zeros.T, bits)
    for q in (rows, openvino, transposed):
        zero = q.zero_points
        assert zero is not None
        width = w.shape[1] // q.scales.shape[1]
        expected = (q.codes.reshape(48, -1, width) - zero[..., None].astype(np.float32)) * (
            q.scales[..., None]
        )
        assert np.array_equal(q.dequantize(), expected.reshape(w.shape))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_floats_by_columns_are_the_transpose(dtype: str) -> None:
    w = matrix(40, 72)
    plain = pq.quantize(w, dtype)
    turned = pq.quantize(w, f"{dtype},layout=transposed")
    item = np.uint32 if dtype == "f32" else np.uint16
    assert np.array_equal(turned.data.view(item).reshape(72, 40), plain.data.view(item).T)
    assert np.array_equal(turned.dequantize(), plain.dequantize())


def test_rows_that_end_within_a_group_are_filled_up() -> None:
    w = matrix(3, 72)
    q = pq.quantize(w, "int4_asym_g32")
    assert q.planes[0].nbytes == 3 * 3 * 16 and q.scales.shape == (3, 3)
    full = np.zeros((3, 96), np.float32)
    full[:, :72] = w
    assert np.array_equal(q.scales, pq.quantize(full, "int4_asym_g32").scales)
    assert np.array_equal(q.codes, pq.quantize(full, "int4_asym_g32").codes[:, :72])


def test_what_a_layout_cannot_hold_is_refused() -> None:
    with pytest.raises(pq.ShapeError, match="no multiple of its group"):
        pq.quantize(matrix(4, 72), "int4_sym_g32,rule=nncf")
    with pytest.raises(pq.ShapeError, match="whole byte"):
        pq.quantize(matrix(3, 64), "int4_sym_g32,layout=transposed")
    with pytest.raises(pq.ShapeError):
        pq.quantize(np.zeros((0, 64), np.float32), "int4_sym_g32")
    with pytest.raises(pq.ValueRangeError, match=r"\[1, 5\]"):
        w = matrix(2, 64)
        w[1, 5] = np.nan
        pq.quantize(w, "int4_sym_g32")
    with pytest.raises(pq.ValueRangeError, match="cannot hold"):
        pq.quantize(np.full((2, 64), 1e38, np.float32), "int4_sym_g32", scales="f16")


@pytest.mark.parametrize(
    "name",
    [
        "int7_sym_g32", "int4_g32", "int4_sym_g48", "int4_sym", "int4_sym_g32,rule=gguf",
        "int4_sym_g32,rule=mlx,layout=rows", "int4_sym_g32,scales=f8", "q4_k,layout=transposed",
        "int4_sym_g32,rule=ort,rule=ort", "int44_sym_g32", "int4_sym_g32,",
    ],
)  # fmt: skip
def test_names_of_codecs_that_are_none(name: str) -> None:
    if name.endswith(","):
        assert find_codec(name).name == "int4_sym_g32"
        return
    with pytest.raises(pq.UsageError, match="there is no codec"):
        find_codec(name)


@pytest.mark.parametrize("codec", ["int8_sym_channel", "nf4_g64", "mxfp4,layout=openvino"])
def test_no_best_is_the_same_under_another_name(codec: str) -> None:
    with pytest.raises(pq.UnsupportedError, match="is not to be had"):
        pq.quantize(matrix(), codec, quality="best")


def test_defaults_are_left_out_of_names() -> None:
    assert find_codec("INT4_SYM_G32,rule=ort,scales=f32,layout=rows").name == "int4_sym_g32"
    assert find_codec("int4_sym_g64,scales=f16,rule=nncf").name == "int4_sym_g64,rule=nncf"


@pytest.mark.parametrize("threads", [1, 3])
def test_results_do_not_depend_on_threads(threads: int) -> None:
    w = np.random.default_rng(3).normal(size=(700, 512)).astype(np.float32)
    for name in ("int4_asym_g32", "int8_sym_channel,layout=transposed", "f16,layout=transposed"):
        one, many = pq.quantize(w, name, threads=1), pq.quantize(w, name, threads=threads)
        assert all(np.array_equal(a, b) for a, b in zip(one.planes, many.planes, strict=True))


def crc32c(data: bytes) -> str:
    return f"{_core.crc32c(data):08x}"


def folder_target(files: tuple[PlannedFile, ...]) -> PlannedTarget:
    return PlannedTarget(
        target="test:planes",
        name="out",
        files=files,
        places=lambda path: [path / file.name for file in files],
        notes=(),
        check=lambda path, file: None,
        companions=lambda path: {},
        hint=lambda path: "",
        folder=True,
    )


@pytest.fixture
def model(tmp_path: Path) -> tuple[pq.Checkpoint, dict[str, Any]]:
    folder = write_model(tmp_path / "model", intermediate_size=384)
    return pq.open(folder), weights_of(config_of(intermediate_size=384))


GATE_UP = "model.layers.0.mlp.gate_up_proj.weight"


def planned(source: pq.Checkpoint) -> Plan:
    """One tensor in every way: whole, by halves, in planes, by columns; with a file of text."""
    rows, columns = source.entries[GATE_UP].shape
    half = rows // 2
    offset = 5  # nothing needs to be aligned
    tensors = []
    for codec, span in [
        ("int4_asym_g32", (0, half)),
        ("int4_asym_g32", (half, rows)),
        ("int8_sym_channel,layout=transposed", None),
        ("int4_sym_g64,layout=transposed", (half, rows)),
        ("f32,layout=transposed", (0, half)),
        ("bf16", None),
        ("int3_asym_g128,rule=nncf", None),
    ]:
        found = find_codec(codec)
        height = span[1] - span[0] if span else rows
        sizes = [p.nbytes for p in found.planes(height, columns)] or [
            found.bytes_of(height, columns)
        ]
        for plane, nbytes in enumerate(sizes):
            name = f"{codec}/{span}/{plane}"
            tensors.append(
                PlannedTensor(
                    name, GATE_UP, codec, (height, columns), offset, nbytes, plane=plane, rows=span
                )
            )
            offset += nbytes + 3
    files = (
        PlannedFile("data", offset, b"", tuple(tensors)),
        PlannedFile("note.txt", 5, b"hello", ()),
    )
    return Plan(source, (folder_target(files),))


def test_the_executor_writes_what_quantize_makes(
    model: tuple[pq.Checkpoint, dict[str, Any]], tmp_path: Path
) -> None:
    source, weights = model
    plan = planned(source)
    report = plan.run(tmp_path / "out", threads=2)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["data", "note.txt"]
    assert (tmp_path / "out" / "note.txt").read_bytes() == b"hello"
    data = (tmp_path / "out" / "data").read_bytes()
    w = np.asarray(weights[GATE_UP])
    checked = {t.name: t for t in report.files[0].tensors}
    for tensor in plan.targets[0].files[0].tensors:
        begin, end = tensor.rows or (0, len(w))
        q = pq.quantize(w[begin:end], tensor.codec)
        expected = (q.planes or (q.data,))[tensor.plane].tobytes()
        assert data[tensor.offset : tensor.offset + tensor.nbytes] == expected, tensor.name
        assert checked[tensor.name].crc32c == crc32c(expected), tensor.name
        measured = checked[tensor.name].relative_error
        assert measured == pytest.approx(q.error(w[begin:end].astype(np.float32)), rel=1e-4)
    assert plan.source_bytes == 2 * source.entries[GATE_UP].nbytes


def test_folders_are_replaced_whole_or_not_at_all(
    model: tuple[pq.Checkpoint, dict[str, Any]], tmp_path: Path
) -> None:
    source, _ = model
    plan, out = planned(source), tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    plan.run(out)
    with pytest.raises(pq.UsageError, match="exists already"):
        plan.run(out)
    first = (out / "data").read_bytes()
    (out / "data").write_bytes(b"old")
    plan.run(out, overwrite=True)
    assert (out / "data").read_bytes() == first
    (out / "mine.txt").write_text("dear")
    with pytest.raises(pq.UsageError, match=r"holds 'mine\.txt'"):
        plan.run(out, overwrite=True)
    assert (out / "mine.txt").read_text() == "dear"
    assert (out / "data").read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]
    with pytest.raises(pq.UsageError, match="source's own folder"):
        plan.run(tmp_path / "model", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(pq.UsageError, match="is no folder"):
        plan.run(tmp_path / "file", overwrite=True)


def test_a_check_that_fails_leaves_the_folder_as_it_was(
    model: tuple[pq.Checkpoint, dict[str, Any]], tmp_path: Path
) -> None:
    source, _ = model
    plan, out = planned(source), tmp_path / "out"
    plan.run(out)
    (out / "data").write_bytes(b"old")

    def refuse(path: Path, file: PlannedFile) -> None:
        assert path.parent.name.startswith(".out.phiquant-")
        raise pq.FormatError("is not to be had")

    target = plan.targets[0]
    broken = folder_target(target.files)
    object.__setattr__(broken, "check", refuse)
    with pytest.raises(pq.FormatError, match="is not to be had"):
        Plan(source, (broken,)).run(out, overwrite=True)
    assert (out / "data").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


def test_what_a_killed_run_left_is_removed(
    model: tuple[pq.Checkpoint, dict[str, Any]], tmp_path: Path
) -> None:
    source, _ = model
    left = tmp_path / ".out.phiquant-0123abcd"
    left.mkdir()
    (left / "data").write_bytes(b"half")
    planned(source).run(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]
