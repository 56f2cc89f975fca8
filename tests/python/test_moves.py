"""Codes moved between formats: every pair, whole models, and numbers that a target cannot hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiquant as pq
from phiquant.description import describe
from phiquant.reference.weights import Weights

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
MODEL = DATA / "phi35"

#: What is moved: a source's target, with one codec for all matrices so that the pair is what is
#: tested; and what it is called in the docs.
SOURCES = {
    "Q4_0": "gguf:q4_0",
    "Q4_1": "gguf:q4_1",
    "Q8_0": "gguf:q8_0",
    "Q4_K": "gguf:q4_k_m",
    "MatMulNBits sym": "onnx:int4",
    "MatMulNBits asym": "onnx:int4,asym",
    "OpenVINO sym": "openvino:int4_sym,group=64",
    "OpenVINO asym": "openvino:int4_asym,group=64",
    "MLX": "mlx:4bit",
    "pack-quantized sym": "hf:w4a16,group=32",
    "pack-quantized asym": "hf:w4a16,group=32,asym",
    "GPTQ": "hf:gptq,group=32",
    "AWQ": "hf:awq,group=32",
    "portable": "hf:awq",
}
TARGETS = {
    "Q4_0": "gguf:q4_0",
    "Q4_1": "gguf:q4_1",
    "Q8_0": "gguf:q8_0",
    "MatMulNBits": "onnx:int4",
    "OpenVINO": "openvino:int4",
    "MLX": "mlx:4bit",
    "pack-quantized": "hf:w4a16",
    "GPTQ": "hf:gptq",
    "AWQ": "hf:awq",
    "fp32": "hf:fp32",
}
#: Embedding and head stay floats in some formats and are 8-bit in others: they are taken out of the
#: comparison of pairs by asking for float32 of them where the source has them encoded.
OUTER = ("model.embed_tokens.weight", "lm_head.weight")


def _made(folder: Path, target: str, **wishes: Any) -> Path:
    name = re.sub(r"[^a-z0-9_]", "_", target) + (".gguf" if target.startswith("gguf") else "")
    out = folder / name
    if not out.exists():
        overrides = [f"{target.partition(':')[0]}:{name}={_float(target)}" for name in OUTER]
        if target.startswith(("hf:", "onnx:")):
            overrides = [o for o in overrides if "embed" not in o]
        if target.startswith(("hf:gptq", "hf:awq")) or "grid" in wishes:
            overrides = []
        pq.convert(MODEL, target, out, tensor=overrides, **wishes)
    return out


def _float(target: str) -> str:
    return "bf16" if target.startswith(("gguf", "mlx", "hf")) else "f32"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    portable = tmp_path_factory.mktemp("portable")
    return {
        name: _made(portable, target, grid="portable")
        if name == "portable"
        else _made(folder, target)
        for name, target in SOURCES.items()
    }


def _weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All tensors in float32 by what they are in the model."""
    checkpoint = pq.open(path)
    spec = describe(checkpoint)
    reader = Weights(checkpoint)
    return {f"{t.role} {t.layer}": reader.whole(t.source) for t in spec.tensors}


def _move(source: Path, target: str, out: Path) -> pq.Report:
    tokenizer = MODEL if source.suffix == ".gguf" and not target.startswith("gguf") else None
    return pq.convert(source, target, out, tokenizer=tokenizer)


def _verdict(source: Path, target: str, out: Path) -> str:
    try:
        report = _move(source, target, out)
    except pq.UnsupportedError as error:
        assert error.remedy is not None
        assert "--requantize" in error.remedy
        assert not out.exists()
        return "–"
    theirs, ours = _weights(source), _weights(out)
    assert theirs.keys() == ours.keys()
    same = [np.array_equal(theirs[name], ours[name]) for name in theirs]
    assert report.is_lossless == all(same)
    assert report.to_json()["lossless"] == all(same)
    # Where the report does not say lossless, it is floats of embedding and head that were rounded.
    changed = {name.split()[0] for name, equal in zip(theirs, same, strict=True) if not equal}
    assert changed <= {"embedding", "output"}
    return "lossless" if all(same) else "floats rounded"


def test_all_pairs_are_as_the_docs_say(sources: dict[str, Path], tmp_path: Path) -> None:
    rows = []
    for name, source in sources.items():
        cells = []
        for number, target in enumerate(TARGETS.values()):
            suffix = ".gguf" if target.startswith("gguf") else ""
            cells.append(_verdict(source, target, tmp_path / f"{len(rows)}_{number}{suffix}"))
        rows.append((name, *cells))
    lines = ["| from \\ to | " + " | ".join(TARGETS) + " |", "|---" * (len(TARGETS) + 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    page = (ROOT / "docs" / "formats" / "moving.md").read_text()
    assert "\n".join(lines) in page, "the page has another table than\n" + "\n".join(lines)


def test_moving_there_and_back_gives_the_same_bytes(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    first = _move(sources["pack-quantized sym"], "onnx:int4", tmp_path / "onnx")
    assert first.is_lossless
    back = _move(tmp_path / "onnx", "hf:w4a16,dtype=bf16", tmp_path / "back")
    assert back.is_lossless
    ours, theirs = pq.open(tmp_path / "back"), pq.open(sources["pack-quantized sym"])
    for name, tensor in theirs.items():
        if isinstance(tensor, pq.QuantizedTensor):
            for mine, own in zip(ours[name].planes, tensor.planes, strict=True):
                assert np.array_equal(mine, own)


def test_a_refusal_says_what_a_second_rounding_would_cost(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(pq.UnsupportedError) as caught:
        _move(sources["Q4_K"], "mlx:4bit", tmp_path / "mlx")
    assert re.search(r"by \d+\.\d% of their size", str(caught.value))
    with pytest.raises(pq.UnsupportedError, match="codes of 8 bits"):
        _move(sources["Q8_0"], "mlx:4bit", tmp_path / "mlx")
    assert not (tmp_path / "mlx").exists()
    report = pq.convert(
        sources["Q8_0"], "mlx:4bit", tmp_path / "mlx", tokenizer=MODEL, requantize=True
    )
    assert not report.is_lossless


def test_a_gguf_needs_a_tokenizer_for_other_formats(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(pq.UsageError, match=r"no tokenizer\.json") as caught:
        pq.convert(sources["Q4_0"], "mlx:4bit", tmp_path / "mlx")
    assert caught.value.remedy is not None
    assert "--tokenizer" in caught.value.remedy


PORTABLE = ("gguf:q4_1", "onnx:int4", "openvino:int4", "mlx:4bit", "hf:w4a16", "hf:gptq", "hf:awq")


@pytest.mark.parametrize("model", ["phi35", "phi3win", "phi4mini"])
def test_targets_on_the_portable_grid_hold_identical_weights(model: str, tmp_path: Path) -> None:
    report = pq.convert(DATA / model, PORTABLE, tmp_path, grid="portable")
    weights = [_weights(result) for result in report.results]
    assert len(weights) == len(PORTABLE)
    for other in weights[1:]:
        assert other.keys() <= weights[0].keys() | {"output None"}
        for name, values in weights[0].items():
            assert np.array_equal(values, other[name]), name


@pytest.mark.parametrize(
    ("to", "wishes", "said"),
    [
        ("gguf:q4_k_m", {}, "cannot hold the portable grid"),
        ("mlx:4bit,group=64", {}, "no choice of options"),
        ("mlx:4bit", {"quality": "best"}, "would make the targets"),
        ("mlx:4bit", {"tensor": "mlx:*.down_proj.weight=8bit"}, "would make the targets"),
    ],
)
def test_what_would_part_the_targets_is_refused(
    to: str, wishes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(pq.UsageError, match=said):
        pq.convert(MODEL, to, tmp_path / "x", grid="portable", **wishes)
    with pytest.raises(pq.UsageError, match="no grid"):
        pq.convert(MODEL, "mlx:4bit", tmp_path / "x", grid="other")


def test_columns_that_awq_has_scaled_are_moved_nowhere(tmp_path: Path) -> None:
    scaled = tmp_path / "awq"
    pq.convert(MODEL, "openvino:int4_sym,group=64,awq", scaled)
    with pytest.raises(pq.UnsupportedError, match="columns that AWQ has scaled"):
        pq.convert(scaled, "onnx:int4", tmp_path / "onnx")
    with pytest.raises(pq.UsageError, match="what is moved stays as it is"):
        pq.convert(scaled, "openvino:int4,awq", tmp_path / "onnx")
    # Rounded a second time, the factors are undone: the weights are near the original's.
    pq.convert(scaled, "onnx:int8", tmp_path / "onnx", requantize=True)
    original = Weights(pq.open(MODEL)).whole("model.layers.0.mlp.down_proj.weight")
    again = _weights(tmp_path / "onnx")["ffn_down 0"]
    assert np.linalg.norm(again - original) < 0.2 * np.linalg.norm(original)
    assert np.linalg.norm(again - _weights(scaled)["ffn_down 0"]) < 0.02 * np.linalg.norm(original)
