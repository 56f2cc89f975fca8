"""ONNX folders read back: phiquant's and the builder's way of writing them, verified, and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

import phiquant as pq
from onnx_peer import onnx
from phiquant.errors import FormatError, UnsupportedError
from phiquant.evaluate import verify
from phiquant.runtimes import runtime_of
from places import DATA


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "phi35"
    pq.convert(DATA / "phi35", "onnx:int4,asym", path)
    return path


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy"
    shutil.copytree(made, path)
    return path


def as_the_builder_writes(folder: Path) -> None:
    """Rope tables as Constants in the branches, dense external data, nothing of phiquant's."""
    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    (choice,) = (node for node in model.graph.node if node.op_type == "If")
    for attribute in choice.attribute:
        branch = attribute.g
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in branch.initializer}
        nodes = [
            helper.make_node(
                "Constant",
                [],
                list(node.output),
                value=numpy_helper.from_array(values[node.input[0]]),
            )
            for node in branch.node
        ]
        del branch.node[:], branch.initializer[:]
        branch.node.extend(nodes)
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).unlink()
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
        convert_attribute=False,
    )


def test_tensors_have_the_sources_names_and_planes(made: Path) -> None:
    source, opened = pq.open(DATA / "phi35"), pq.open(made)
    assert set(source) <= set(opened)
    for name in source:
        assert opened.entries[name].shape == source.entries[name].shape
    matrix = opened["model.layers.2.mlp.gate_up_proj.weight"]
    assert matrix.codec.name == "int4_asym_g32" and matrix.zero_points is not None
    w = np.asarray(source["model.layers.2.mlp.gate_up_proj.weight"]).astype(np.float32)
    assert np.array_equal(matrix.dequantize(), pq.quantize(w, "int4_asym_g32").dequantize())


def test_the_builders_way_of_writing_is_read_alike(made: Path, copy: Path) -> None:
    as_the_builder_writes(copy)
    mine, other = pq.open(made), pq.open(copy)
    for name in pq.open(DATA / "phi35"):
        one, two = mine[name], other[name]
        if isinstance(one, pq.QuantizedTensor):
            assert all(
                a.tobytes() == b.tobytes() for a, b in zip(one.planes, two.planes, strict=True)
            )
        else:
            assert np.array_equal(one, two)
    with pytest.raises(UnsupportedError, match="was not made by phiquant"):
        verify(copy, DATA / "phi35")


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
@pytest.mark.parametrize("target", ["onnx:int4", "onnx:fp16", "onnx:int8-dynamic"])
def test_sound_folders_are_verified(fixture: str, target: str, tmp_path: Path) -> None:
    path = tmp_path / "made"
    pq.convert(DATA / fixture, target, path)
    assert runtime_of(path).name == "ONNX Runtime GenAI"
    result = verify(path, DATA / fixture)
    assert result.passed, str(result)


def test_wrong_rope_tables_are_found(copy: Path) -> None:
    """The graph then runs, and says something else."""
    checkpoint = pq.open(copy)
    entry = checkpoint.entries["sin_cache_small_values"]
    with checkpoint.files[entry.file].path.open("r+b") as file:
        file.seek(entry.offset)
        values = np.frombuffer(file.read(entry.nbytes), np.float32)
        file.seek(entry.offset)
        file.write((-values).tobytes())
    result = verify(copy, DATA / "phi35")
    assert {check.name for check in result.checks if not check.passed} >= {"logits", "source"}


def test_short_data_are_refused(copy: Path) -> None:
    data = copy / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(FormatError, match="past the file's end"):
        pq.open(copy)


@pytest.mark.parametrize("name", ["../model.onnx", "/model.onnx", "", "..", 3, None])
def test_the_config_names_a_file_of_its_own_folder(copy: Path, name: object) -> None:
    path = copy / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["filename"] = name
    path.write_text(json.dumps(config))
    with pytest.raises(FormatError, match="no plain file of this folder"):
        pq.open(copy)


def test_a_damaged_folder_does_not_load(copy: Path) -> None:
    graph = copy / "model.onnx"
    model = onnx.load(graph, load_external_data=False)
    model.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(model, graph)
    with pytest.raises(FormatError, match=r"ONNX Runtime GenAI: .*NoSuchOperator"):
        runtime_of(copy).load(copy, context=64, threads=1, exact=False)
