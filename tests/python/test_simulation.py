"""Simulated weights are those that phiquant's readers decode from written files, and leave no trace."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import phiquant as pq
from phiquant.description import describe
from phiquant.reference.weights import Weights

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="transformers 5 needs Python 3.11"
)

DATA = Path(__file__).parents[1] / "data"
TARGETS = (
    "gguf:q4_k_m",
    "onnx:int4",
    "onnx:fp16",
    "onnx:int8-dynamic",
    "mlx:4bit",
    "openvino:int4",
    "hf:w4a16",
    "hf:mxfp4",
)
IDS = torch.arange(5, 69)[None]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices so small are faster without waiting for another thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def loaded(source: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(DATA / source, dtype=dtype)


def load(source: str, dtype: str = "float32") -> Any:
    return copy.deepcopy(loaded(source, dtype))


def saved(model: Any, source: str, folder: Path) -> Path:
    """What users without ``simulate`` would do: save, then convert the folder."""
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DATA / source).save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def bits(model: Any) -> dict[str, bytes]:
    return {
        name: tensor.view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
    }


def decoded(result: Path, source: Path) -> dict[str, np.ndarray]:
    """The weights of a written result as its reader decodes them, by their names in the model."""
    opened = pq.open(result)
    weights = Weights(opened)
    ours = {(t.role, t.layer): t.source for t in describe(opened).tensors}
    theirs = {(t.role, t.layer): t.source for t in describe(pq.open(source)).tensors}
    assert ours.keys() == theirs.keys()
    return {theirs[role]: weights.whole(name) for role, name in ours.items()}


@pytest.mark.parametrize("source", ["phi35", "phi4mini"])
def test_simulated_weights_and_logits_are_those_of_the_files(source: str, tmp_path: Path) -> None:
    model, other = load(source), load(source)
    before, plain = bits(model), logits(model)
    folder = saved(model, source, tmp_path / "saved")
    report = pq.convert(folder, to=TARGETS, out=tmp_path)
    for target, result in zip(TARGETS, report.results, strict=True):
        known = {name: torch.from_numpy(w) for name, w in decoded(result, folder).items()}
        other.load_state_dict(known, strict=False)
        with pq.simulate(model, target) as simulation:
            assert bits(model) == bits(other), target
            assert torch.equal(logits(model), logits(other)), target
            assert not torch.equal(logits(model), plain), target
            assert simulation.codecs.keys() <= known.keys()
            assert simulation.kept_bytes > 0
        assert bits(model) == before, target
        assert torch.equal(logits(model), plain), target
        assert simulation.kept_bytes == 0


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("hf:gptq", {}),
        ("hf:awq", {}),
        ("hf:nvfp4", {}),
        ("mlx:mxfp8", {}),
        ("openvino:int4,ratio=0.6", {}),
        ("openvino:int4,awq", {}),
        ("openvino:int4,awq", {"quality": "best"}),
        ("onnx:int4", {"grid": "portable"}),
        ("hf:awq", {"grid": "portable"}),
        ("iq2_m", {"importance": DATA / "phi35" / "imatrix.gguf"}),
        ("q4_k_m", {"importance": DATA / "phi35" / "imatrix.gguf", "quality": "best"}),
        ("q4_k_m", {"tensor": "*.down_proj.weight=q8_0", "embedding_type": "q2_k"}),
        ("mlx:4bit", {"tensor": "mlx:*.down_proj.weight=8bit", "quality": "best"}),
    ],
)
def test_options_mean_what_they_mean_for_files(
    target: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = load("phi35")
    folder = saved(model, "phi35", tmp_path / "saved")
    result = pq.convert(folder, to=target, out=tmp_path / "out", **options).path
    with pq.simulate(model, target, **options):
        for name, expected in decoded(result, folder).items():
            np.testing.assert_array_equal(model.state_dict()[name].numpy(), expected, name)


def test_a_bfloat16_model_holds_the_decoded_weights_rounded_to_bfloat16(tmp_path: Path) -> None:
    model = load("phi35", "bfloat16")
    before = bits(model)
    result = pq.convert(DATA / "phi35", to="q4_k_m", out=tmp_path / "phi.gguf").path
    simulation = pq.simulate(model, "q4_k_m")
    for name, expected in decoded(result, DATA / "phi35").items():
        ours = model.state_dict()[name].view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(ours, expected.astype(ml_dtypes.bfloat16), name)
    # Norms are float32 in the file, which changes nothing in bfloat16: nothing is kept of them.
    assert simulation.kept_bytes < sum(len(raw) for raw in before.values())
    simulation.restore()
    simulation.restore()
    assert bits(model) == before


def test_scaled_columns_in_bfloat16_are_rounded_as_in_the_file(tmp_path: Path) -> None:
    result = pq.convert(DATA / "phi35", to="openvino:int4,awq", out=tmp_path / "out").path
    source = pq.open(DATA / "phi35")
    arrays = {name: np.array(source[name]) for name in source}
    pq.simulate(arrays, "openvino:int4,awq", config=DATA / "phi35")
    for name, expected in decoded(result, DATA / "phi35").items():
        np.testing.assert_array_equal(arrays[name], expected.astype(ml_dtypes.bfloat16), name)


def test_scales_that_are_folded_into_other_rows_change_no_answer() -> None:
    model = load("phi35")
    plain = logits(model)
    with pq.simulate(model, "openvino:int4_sym,awq,group=32", quality="best") as simulation:
        folded = logits(model)
        assert max(simulation.errors.values()) < 0.15  # of the scaled weights, not of the source's
    with pq.simulate(model, "openvino:int4_sym,noawq,group=32", quality="best"):
        other = logits(model)
    # As near as without: a scale that was not undone would be off by far.
    assert (folded - plain).pow(2).mean() < 2 * (other - plain).pow(2).mean()


def test_a_tied_model_stays_tied() -> None:
    model = load("phi4mini")
    with pq.simulate(model, "onnx:int4"):
        head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
        assert head.data_ptr() == embedding.data_ptr()


def test_nested_simulations_are_undone_in_turn() -> None:
    model = load("phi4mini")
    before = bits(model)
    with pq.simulate(model, "q8_0"):
        first = bits(model)
        with pq.simulate(model, "q2_k"):
            assert bits(model) != first
        assert bits(model) == first
    assert bits(model) == before


def test_a_state_dict_of_arrays_is_simulated_in_place() -> None:
    source = pq.open(DATA / "phi35")
    arrays = {name: np.array(source[name]) for name in source}
    kept = {name: array.tobytes() for name, array in arrays.items()}
    seen: list[tuple[int, int]] = []
    with pq.simulate(
        arrays, "mlx:4bit", config=DATA / "phi35", progress=lambda *done: seen.append(done)
    ) as simulation:
        total = sum(array.nbytes for array in arrays.values())
        assert seen[-1] == (total, total) and seen == sorted(set(seen))
        changed = {name for name, array in arrays.items() if array.tobytes() != kept[name]}
        assert changed == {name for name, error in simulation.errors.items() if error > 0}
    assert {name: array.tobytes() for name, array in arrays.items()} == kept


def test_a_tensor_that_cannot_be_encoded_leaves_the_model_as_it_was() -> None:
    model = load("phi35")
    with torch.no_grad():
        model.model.layers[5].mlp.down_proj.weight[3, 4] = float("nan")
    before = bits(model)
    with pytest.raises(pq.ValueRangeError, match=r"layers\.5\.mlp\.down_proj"):
        pq.simulate(model, "q4_k_m")
    assert bits(model) == before


def test_strips_are_not_seen_in_weights_or_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = load("phi35"), load("phi35")
    with torch.no_grad():
        model.lm_head.weight[4000, 9] = float("inf")
    for target in ("q3_k_m", "openvino:int4", "onnx:int4"):
        pq.simulate(other, target)
    expected = bits(other)
    monkeypatch.setattr("phiquant.simulation._STRIP", 1 << 14)
    other = load("phi35")
    for target in ("q3_k_m", "openvino:int4", "onnx:int4"):
        pq.simulate(other, target)
    assert bits(other) == expected
    with pytest.raises(pq.ValueRangeError, match=r"lm_head.*infinity at \[4000, 9\]"):
        pq.simulate(model, "q3_k_m")


def test_what_cannot_be_written_to_is_refused() -> None:
    source = pq.open(DATA / "phi35")
    with pytest.raises(pq.UsageError, match=r"read-only.*copy"):
        pq.simulate({name: source[name] for name in source}, "q4_k_m", config=DATA / "phi35")
    with pytest.raises(pq.UnsupportedError, match="int8-dynamic"):
        pq.simulate(load("phi35"), "onnx:int8-static")
    with pytest.raises(pq.UsageError, match="config"):
        pq.simulate({name: source[name] for name in source}, "q4_k_m")
