"""ONNX graphs and weights against those of onnxruntime-genai's own builder, as recorded.

See golden/make_onnx_builder.py. The providers that cannot run here are held against it so.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import phiquant as pq
from onnx_peer import onnx
from places import DATA, GOLDEN

EXPORTS = json.loads((GOLDEN / "onnx-builder.json").read_text())["exports"]


def target_of(key: str) -> tuple[str, str]:
    fixture, preset, provider = key.split(":")
    exact = ",accuracy=0" if provider == "cpu" and preset != "fp32" else ""
    ep = "" if provider == "cpu" else f",ep={provider}"
    return fixture, f"onnx:{preset}{ep}{exact}"


@pytest.fixture(scope="module", params=sorted(EXPORTS))
def export(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    fixture, target = target_of(request.param)
    path = tmp_path_factory.mktemp("onnx") / "made"
    pq.convert(DATA / fixture, target, path)
    return request.param, path


def test_the_checker_and_shape_inference_take_it(export: tuple[str, Path]) -> None:
    model = onnx.load(export[1] / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        # ONNX Runtime has it in ONNX's own domain, which the checker does not know.
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = "com.microsoft"
    checked = export[1] / "checked.onnx"
    onnx.save(model, checked)
    onnx.checker.check_model(str(checked))
    assert model.ir_version == EXPORTS[export[0]]["ir_version"]
    opsets = {item.domain: item.version for item in model.opset_import}
    assert opsets == EXPORTS[export[0]]["opsets"]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False)
    assert len(inferred.graph.node) == len(model.graph.node)


def test_nodes_are_the_builders(export: tuple[str, Path]) -> None:
    """Each of its nodes by name, with type, domain and attributes."""
    theirs = EXPORTS[export[0]]
    graph = pq.onnx.read(export[1] / "model.onnx").graph
    assert {info.name for info in graph.inputs} == set(theirs["inputs"])
    mine = {
        node.name: [
            node.op,
            node.domain,
            {k: v for k, v in node.attributes.items() if isinstance(v, (int, float))},
        ]
        for node in graph.nodes
    }
    fixture = export[0].split(":")[0]
    for name, op, domain, attributes in theirs["nodes"]:
        assert name in mine, name
        kind, where, own = mine[name]
        assert (kind, where) == (op, domain), name
        wanted = dict(attributes)
        if op == "MatMulNBits":  # 0 and left out are the same
            wanted.pop("accuracy_level", None)
            own.pop("accuracy_level", None)
        if fixture == "phi3win" and op == "GroupQueryAttention":
            # The builder drops the sliding window.
            assert (wanted.pop("local_window_size"), own.pop("local_window_size")) == (-1, 47)
        assert own == pytest.approx(wanted, rel=1e-7), name
    extra = [
        node.op
        for name, node in ((n.name, n) for n in graph.nodes)
        if name not in {row[0] for row in theirs["nodes"]}
    ]
    assert not extra


def test_weights_are_the_builders_bit_for_bit(export: tuple[str, Path]) -> None:
    theirs = EXPORTS[export[0]]["initializers"]
    mine = {
        tensor.name: tensor for tensor in pq.onnx.read(export[1] / "model.onnx").graph.initializers
    }
    compared = 0
    for name, (shape, _, digest) in theirs.items():
        if name.endswith("_cache"):  # torch's powers differ from NumPy's in the last bit
            continue
        tensor = mine[name]
        assert list(tensor.shape) == shape, name
        assert tensor.data is not None
        assert hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16] == digest, name
        compared += 1
    assert compared > 10
