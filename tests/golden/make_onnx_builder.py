"""Record what onnxruntime-genai's own model builder makes of the fixtures: nodes, weights, text.

Needs onnxruntime-genai, onnx, onnx_ir, torch and transformers, as the builder does:

    python tests/golden/make_onnx_builder.py

Writes ``onnx-builder.json``: of each export the nodes' types with their attributes, a digest of
each initializer, and greedy texts. ``accuracy_level`` is 0 there, without which a last bit in a rope
table (torch's and NumPy's powers differ by one) would become another rounded activation.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai as og
from onnx import numpy_helper

HERE = Path(__file__).parent
DATA = HERE.parent / "data"
#: Fixture, precision, execution provider, options; those of the same graph as phiquant's.
EXPORTS = [
    ("phi35", "int4", "cpu", ["int4_accuracy_level=0", "accuracy_level=0"]),
    ("phi35", "int8", "cpu", ["accuracy_level=0"]),
    ("phi35", "fp32", "cpu", []),
    ("phi35", "int4", "cuda", []),
    ("phi35", "fp16", "cuda", []),
    ("phi35", "int4", "webgpu", []),
    ("phi35", "int4", "dml", []),
    ("phi4mini", "int4", "dml", []),
    ("phi3win", "int4", "cpu", ["accuracy_level=0"]),
]
PROMPTS = ("chat", "function", "prose", "select")
COUNT = 24


def build(fixture: str, precision: str, provider: str, options: list[str], out: Path) -> None:
    source = out.parent / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(DATA / fixture, source)
    words = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
    words += ["-o", str(out), "-p", precision, "-e", provider, "-c", str(out.parent / "cache")]
    if options:
        words += ["--extra_options", *options]
    subprocess.run(words, check=True, capture_output=True)


def nodes_of(graph: Any) -> list[list[Any]]:
    found = []
    for node in graph.node:
        attributes = {}
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            value = onnx.helper.get_attribute_value(attribute)
            if isinstance(value, (int, float)):
                attributes[attribute.name] = value
        if node.op_type != "Constant":
            found.append([node.name, node.op_type, node.domain, attributes])
    return found


def greedy(path: Path, ids: list[int]) -> list[int]:
    model = og.Model(str(path))
    settings = og.GeneratorParams(model)
    settings.set_search_options(max_length=len(ids) + COUNT, do_sample=False)
    generator = og.Generator(model, settings)
    generator.append_tokens(np.array([ids], np.int32))
    found: list[int] = []
    while not generator.is_done() and len(found) < COUNT:
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


def main() -> None:
    record: dict[str, Any] = {
        "made_with": {
            name: version(name)
            for name in ("onnxruntime-genai", "onnxruntime", "onnx", "torch", "transformers")
        },
        "exports": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for fixture, precision, provider, options in EXPORTS:
            out = Path(scratch) / f"{fixture}-{precision}-{provider}"
            build(fixture, precision, provider, options, out)
            model = onnx.load(out / "model.onnx")
            texts = {}
            if provider == "cpu":
                prompts = np.load(DATA / fixture / "reference.npz")
                texts = {name: greedy(out, prompts[f"{name}.ids"].tolist()) for name in PROMPTS}
            record["exports"][f"{fixture}:{precision}:{provider}"] = {
                "opsets": {item.domain: item.version for item in model.opset_import},
                "ir_version": model.ir_version,
                "inputs": [value.name for value in model.graph.input],
                "nodes": nodes_of(model.graph),
                "initializers": {
                    tensor.name: [
                        list(tensor.dims),
                        tensor.data_type,
                        hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()[:16],
                    ]
                    for tensor in model.graph.initializer
                },
                "greedy": texts,
            }
    (HERE / "onnx-builder.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
