"""Write the seeds of the fuzz targets: small files of the real packages, and one bare header.

Needs the packages gguf, onnx, safetensors and numpy. Run from anywhere; the seeds are kept in git.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gguf
import numpy as np
import onnx
import safetensors.numpy

CORPUS = Path(__file__).parent / "corpus"


def write_safetensors_seeds(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    two = {"a.weight": np.ones((2, 2), np.float16), "b": np.zeros((0, 3), np.int64)}
    data = safetensors.numpy.save(two, metadata={"format": "pt"})
    (folder / "two").write_bytes(data)
    (folder / "empty").write_bytes(safetensors.numpy.save({}))
    # The target reads a bare header after two bytes of data size.
    json = b'{"\\u00e9\\ud83d\\ude42":{"data_offsets":[0,4],"shape":[],"dtype":"F32"}}'
    (folder / "bare").write_bytes(b"\x04\x00" + json)


def write_gguf_seeds(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "x.gguf"
        writer = gguf.GGUFWriter(path, arch="phi3")
        writer.add_custom_alignment(16)
        writer.add_array("tokens", ["a", "é"])
        writer.add_array("scores", [0.5, -1.0])
        writer.add_bool("flag", True)
        writer.add_float64("f64", 0.1)
        writer.add_tensor("x", np.ones((2, 4), np.float32))
        blocks = np.zeros((1, 34), np.uint8)
        writer.add_tensor("y", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (folder / "two").write_bytes(path.read_bytes())
    (folder / "empty").write_bytes(b"GGUF\x03\0\0\0" + bytes(16))


def write_onnx_seeds(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    listed = helper.make_tensor("n", onnx.TensorProto.INT64, (2,), [1, -1])
    external = onnx.TensorProto(name="e", data_type=1, dims=[2], data_location=1)
    for key, value in {"location": "x.data", "offset": "64", "length": "8"}.items():
        external.external_data.add(key=key, value=value)
    out = helper.make_tensor_value_info("y", 1, ["n", 2])
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "b", [], [out])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="m"),
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("Any", [""], ["a"], domain="d", i=1, f=0.5, s="t", l=[1, 2], g=[0.5], t=listed, k=["a"]),
    ]  # fmt: skip
    info = helper.make_tensor_value_info("x", 1, ["n", 2])
    graph = helper.make_graph(nodes, "g", [info], [out], [weight, listed, external])
    model = helper.make_model(graph)
    helper.set_model_props(model, {"key": "value"})
    (folder / "small").write_bytes(model.SerializeToString())
    (folder / "empty").write_bytes(
        helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString()
    )


if __name__ == "__main__":
    write_safetensors_seeds(CORPUS / "safetensors")
    write_gguf_seeds(CORPUS / "gguf")
    write_onnx_seeds(CORPUS / "onnx")
