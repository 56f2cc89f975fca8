"""ONNX files written and read, with the onnx package as the other side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx as real
import pytest
from onnx import TensorProto, helper, numpy_helper

import phiquant as pq
from phiquant.errors import FormatError, UsageError
from phiquant.onnx import Graph, Node, Tensor, TensorInfo


def branch(name: str, values: np.ndarray) -> Graph:
    return Graph(
        name,
        [Node("Identity", [f"{name}_in"], [f"{name}_out"], f"{name}_copy")],
        (),
        [TensorInfo(f"{name}_out", "float32", values.shape)],
        [Tensor.of(f"{name}_in", values)],
    )


def example() -> Graph:
    weight = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
    return Graph(
        "example",
        [
            Node("MatMul", ["x", "w"], ["y"], "product"),
            Node(
                "If",
                ["c"],
                ["z"],
                "choice",
                attributes={
                    "then_branch": branch("long", np.ones((40, 8), np.float32)),
                    "else_branch": branch("short", np.zeros((2, 2), np.float32)),
                },
            ),
            Node(
                "Anything",
                ["y", "", "z"],
                ["a"],
                "attributes",
                "org.example",
                {
                    "i": -(1 << 62),
                    "f": 0.1,
                    "s": "é",
                    "ints": [1, -2, 3],
                    "floats": [0.5, -1.0],
                    "strings": ["a", "b"],
                    "t": Tensor.of("", np.array([1, 2], np.int64)),
                },
            ),
        ],
        [TensorInfo("x", "float32", ("n", 64)), TensorInfo("c", "bool", ())],
        [TensorInfo("a", "float16", ("k",))],
        [Tensor.of("w", weight), Tensor.of("shape", np.array([1, -1], np.int64))],
        [TensorInfo("y", "float32", ("n", 32))],
    )


def test_the_onnx_package_reads_what_is_written(tmp_path: Path) -> None:
    path = pq.onnx.write(
        tmp_path / "x.onnx",
        example(),
        external="x.data",
        opsets={"": 22, "org.example": 3},
        metadata={"who": "zoë"},
    )
    model = real.load(path)
    real.checker.check_model(str(path), full_check=True)
    assert model.ir_version == 10 and model.producer_name == "phiquant"
    assert {item.domain: item.version for item in model.opset_import} == {"": 22, "org.example": 3}
    assert {item.key: item.value for item in model.metadata_props} == {"who": "zoë"}
    w, shape = model.graph.initializer
    assert np.array_equal(numpy_helper.to_array(w), example().initializers[0].numpy())
    assert numpy_helper.to_array(shape).tolist() == [1, -1]
    choice, rest = model.graph.node[1], model.graph.node[2]
    inner = {a.name: helper.get_attribute_value(a) for a in choice.attribute}
    assert numpy_helper.to_array(inner["then_branch"].initializer[0]).shape == (40, 8)
    found = {a.name: helper.get_attribute_value(a) for a in rest.attribute}
    assert list(rest.input) == ["y", "", "z"]
    assert found["i"] == -(1 << 62) and found["f"] == np.float32(0.1)
    assert found["s"] == "é".encode() and found["strings"] == [b"a", b"b"]
    assert found["ints"] == [1, -2, 3] and found["floats"] == [0.5, -1.0]
    assert numpy_helper.to_array(found["t"]).tolist() == [1, 2]
    bare = real.load(path, load_external_data=False)
    assert bare.graph.initializer[0].data_location == TensorProto.EXTERNAL
    assert bare.graph.initializer[1].data_location == TensorProto.DEFAULT


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = pq.onnx.write(tmp_path / "x.onnx", example(), external="x.data")
    model = pq.onnx.read(path)
    assert [node.op for node in model.graph.nodes] == ["MatMul", "If", "Anything"]
    assert model.graph.inputs == list(example().inputs)
    assert model.graph.outputs == [TensorInfo("a", "float16", ("k",))]
    assert np.array_equal(model.graph.initializers[0].numpy(), example().initializers[0].numpy())
    assert [graph.name for graph in model.graph.walk()] == ["example", "long", "short"]
    checkpoint = pq.open(path)
    assert set(checkpoint) == {"w", "shape", "long_in", "short_in"}
    assert checkpoint["long_in"].sum() == 320


def test_without_an_external_file_all_is_in_one(tmp_path: Path) -> None:
    path = pq.onnx.write(tmp_path / "x.onnx", example())
    assert list(tmp_path.iterdir()) == [path]
    assert np.array_equal(pq.open(path)["w"], example().initializers[0].numpy())


@pytest.mark.parametrize(
    "dtype",
    [
        *("float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32"),
        *("int64", "uint64", "bool", "bfloat16", "float8_e4m3fn", "int4", "uint4"),
    ],
)
@pytest.mark.parametrize("raw", [True, False])
def test_tensors_of_the_onnx_package_are_read(tmp_path: Path, dtype: str, raw: bool) -> None:
    values = np.array([[1, 0, 1], [1, 1, 0]]).astype(getattr(ml_dtypes, dtype, None) or dtype)
    tensor = numpy_helper.from_array(values, "t")
    if not raw:
        listed = values.view(np.uint16) if dtype == "bfloat16" else values
        listed = values.view(np.uint8) if dtype == "float8_e4m3fn" else listed
        if dtype in ("bfloat16", "float16", "float8_e4m3fn"):
            tensor = TensorProto(name="t", data_type=tensor.data_type, dims=values.shape)
            bits = listed.view(np.uint16) if dtype == "float16" else listed
            tensor.int32_data.extend(bits.astype(np.int32).ravel().tolist())
        else:
            tensor = helper.make_tensor("t", tensor.data_type, values.shape, listed.ravel())
    graph = helper.make_graph([], "g", [], [], [tensor])
    path = tmp_path / "x.onnx"
    real.save(helper.make_model(graph), path)
    (found,) = pq.onnx.read(path).graph.initializers
    assert found.dtype == dtype
    assert np.array_equal(found.numpy().astype(np.float64), values.astype(np.float64))


def saved(tmp_path: Path, **places: Any) -> Path:
    """A model with one external tensor of 8 bytes, written by the onnx package."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.data").write_bytes(bytes(64))
    (tmp_path / "outside").write_bytes(bytes(64))
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "inner").mkdir()
    (folder / "inner" / "x").write_bytes(bytes(64))
    tensor = TensorProto(name="t", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "x.data", "offset": 0, "length": 8, **places}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    path = folder / "x.onnx"
    real.save(helper.make_model(helper.make_graph([], "g", [], [], [tensor])), path)
    return path


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"location": "../outside"}, "no plain name"),
        ({"location": "/etc/passwd"}, "no plain name"),
        ({"location": "inner/x"}, "no plain name"),
        ({"location": "inner\\x"}, "no plain name"),
        ({"location": "C:x"}, "no plain name"),
        ({"location": ".."}, "no plain name"),
        ({"location": "."}, "no plain name"),
        ({"location": "link"}, "a link that leaves the model's folder"),
        ({"location": "inner"}, "not a regular file"),
        ({"location": "missing"}, "which is not there"),
        ({"location": None}, "names no file"),
        ({"offset": 57}, "past the file's end"),
        ({"offset": (1 << 64) - 4}, "overflows"),
        ({"offset": -8}, "no number"),
        ({"offset": "8 "}, "no number"),
        ({"length": 12}, "holds 12 bytes, but its shape and type take 8"),
        ({"length": 1 << 65}, "no number"),
    ],
)
def test_external_data_must_lie_in_the_folder_and_be_there(
    tmp_path: Path, places: dict[str, Any], words: str
) -> None:
    path = saved(tmp_path, **places)
    with pytest.raises(FormatError, match=words):
        pq.open(path)


def test_external_data_within_the_folder_are_taken(tmp_path: Path) -> None:
    assert pq.open(saved(tmp_path, offset=56))["t"].shape == (2,)


@pytest.mark.parametrize("external", ["../x", "/x", "", "..", "x.onnx", "a/b"])
def test_external_names_to_write_are_plain(tmp_path: Path, external: str) -> None:
    with pytest.raises(UsageError, match="no plain name"):
        pq.onnx.write(tmp_path / "x.onnx", example(), external=external)
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept(tmp_path: Path) -> None:
    path = pq.onnx.write(tmp_path / "x.onnx", example(), external="x.data")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        pq.onnx.write(path, Graph("other", []), external="y.data")
    assert path.read_bytes() == before and not (tmp_path / "y.data").exists()
    pq.onnx.write(path, example(), external="x.data", overwrite=True)


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    short = Tensor("w", "float32", (3,), np.zeros(4, np.uint8))
    with pytest.raises(UsageError, match="holds 4 bytes"):
        pq.onnx.write(tmp_path / "x.onnx", Graph("g", [], initializers=[short]))
    with pytest.raises(UsageError, match="no type 'float31'"):
        pq.onnx.write(tmp_path / "x.onnx", Graph("g", [], [TensorInfo("x", "float31", ())]))
    odd = Node("X", [], [], attributes={"a": object()})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="no kind that ONNX has"):
        pq.onnx.write(tmp_path / "x.onnx", Graph("g", [odd]))
