"""The reference run computes what transformers computes, from any format and past the original context."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiquant as pq
from phiquant.architectures import ModelSpec
from phiquant.checkpoint import Checkpoint
from phiquant.reference import describe
from phiquant.reference.decoder import Decoder as AnyDecoder
from places import DATA, FIXTURES

PROMPTS = ("select", "function", "chat", "prose", "eval_short", "eval_edge", "eval_long")
# The bound, which is for the order of float32 sums; measured: up to 2e-5.
BOUND = 1e-4


class Decoder(AnyDecoder):
    """On one thread, which is fastest for models this small."""

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec | None = None) -> None:
        super().__init__(checkpoint, spec, threads=1)


def recorded(fixture: str, prompt: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(DATA / fixture / "reference.npz") as arrays:
        return arrays[f"{prompt}.ids"], arrays[f"{prompt}.logits"]


def distance(decoder: AnyDecoder, fixture: str, prompt: str) -> float:
    ids, wanted = recorded(fixture, prompt)
    got = decoder(ids[None], last=len(wanted))[0]
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max())


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_logits_are_transformers(fixture: str, prompt: str) -> None:
    assert distance(Decoder(pq.open(DATA / fixture)), fixture, prompt) < BOUND


@pytest.mark.parametrize("preset", ["f32", "bf16"])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_logits_from_a_gguf_are_transformers(fixture: str, preset: str, converted: Any) -> None:
    decoder = Decoder(pq.open(converted(fixture, preset)))
    for prompt in ("select", "eval_edge", "eval_long"):
        assert distance(decoder, fixture, prompt) < BOUND


@pytest.mark.parametrize("fixture", FIXTURES)
def test_quantized_weights_are_decoded(fixture: str, converted: Any) -> None:
    """Q8_0 moves logits by hundredths (measured up to 0.14); wrongly decoded ones would by whole units."""
    decoder = Decoder(pq.open(converted(fixture, "q8_0")))
    assert 0 < distance(decoder, fixture, "eval_short") < 0.5


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
def test_the_long_factors_begin_past_the_original_context(fixture: str) -> None:
    checkpoint = pq.open(DATA / fixture)
    spec = describe(checkpoint)
    scaling = spec.rope.scaling
    assert scaling is not None
    swapped = replace(
        scaling, short_factors=scaling.long_factors, long_factors=scaling.short_factors
    )
    wrong = Decoder(checkpoint, replace(spec, rope=replace(spec.rope, scaling=swapped)))
    assert distance(wrong, fixture, "eval_long") > 0.1
    assert distance(wrong, fixture, "eval_edge") > 0.1


def test_the_window_is_attended() -> None:
    checkpoint = pq.open(DATA / "phi3win")
    spec = describe(checkpoint)
    assert spec.attention.window == 47
    wide = Decoder(checkpoint, replace(spec, attention=replace(spec.attention, window=None)))
    assert distance(wide, "phi3win", "eval_short") > 0.1


def test_small_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from phiquant.reference import attention

    for fixture in ("phi4mini", "phi3win"):
        with monkeypatch.context() as patch:
            patch.setattr(attention, "_BLOCK", 7)
            assert distance(Decoder(pq.open(DATA / fixture)), fixture, "eval_short") < BOUND


def test_threads_change_nothing() -> None:
    checkpoint = pq.open(DATA / "phi4mini")
    ids = np.random.default_rng(0).integers(0, 4000, (3, 100))
    one, three = (AnyDecoder(checkpoint, threads=n)(ids, last=2) for n in (1, 3))
    np.testing.assert_allclose(one, three, atol=BOUND)


def test_a_batch_is_its_sequences() -> None:
    decoder = Decoder(pq.open(DATA / "phi4mini"))
    ids = np.random.default_rng(0).integers(0, 4000, (5, 300))
    together = decoder(ids, last=4)
    alone = np.concatenate([decoder(row[None], last=4) for row in ids])
    # Matrix products of other sizes sum in another order.
    np.testing.assert_allclose(together, alone, atol=BOUND)


def test_a_run_goes_on_from_any_layer() -> None:
    decoder = Decoder(pq.open(DATA / "phi35"))
    ids = np.arange(64).reshape(2, 32) + 300
    steps = [(done, hidden.copy()) for done, hidden in decoder.run(decoder.embed(ids))]
    assert [done for done, _ in steps] == [1, 2, 3, 4, 5, 6]
    *_, (done, hidden) = decoder.run(steps[2][1], first=3)
    assert done == 6
    np.testing.assert_array_equal(hidden, steps[-1][1])


def test_the_hook_sees_every_linear_of_every_layer() -> None:
    decoder = Decoder(pq.open(DATA / "phi35"))
    seen: dict[str, list[tuple[int, ...]]] = {}

    def hook(name: str, x: np.ndarray) -> None:
        assert x.dtype == np.float32
        seen.setdefault(name, []).append(x.shape)

    calls: list[int] = []
    first = decoder.embed(np.full((3, 600), 77))
    *_, (_, hidden) = decoder.run(first, on_linear_input=hook, progress=calls.append)
    decoder.logits(hidden[:, -1:], on_linear_input=hook)
    matrices = {t.source: t.shape for t in decoder.spec.tensors if len(t.shape) == 2}
    del matrices["model.embed_tokens.weight"]
    assert seen.keys() == matrices.keys()
    for name, shapes in seen.items():
        assert {columns for _, columns in shapes} == {matrices[name][1]}
        assert sum(rows for rows, _ in shapes) == (3 if name == "lm_head.weight" else 1800)
    assert calls[-1] == 1800
    assert calls[: len(calls) // 6] == sorted(calls[: len(calls) // 6])


def test_what_goes_into_a_linear_is_what_comes_out_of_the_one_before() -> None:
    """The hook's names belong to its activations: each product is checked against the weights."""
    checkpoint = pq.open(DATA / "phi4mini")
    decoder = Decoder(checkpoint)
    inputs: dict[str, np.ndarray] = {}
    hidden = decoder.embed(np.arange(40)[None] + 500)
    before = hidden.copy()
    run = decoder.run(hidden, on_linear_input=lambda name, x: inputs.update({name: x.copy()}))
    _, after = next(run)
    layer = "model.layers.0."

    def product(name: str) -> np.ndarray:
        return inputs[layer + name] @ np.asarray(checkpoint[layer + name], np.float32).T

    gate, up = np.split(product("mlp.gate_up_proj.weight"), 2, axis=1)
    np.testing.assert_allclose(
        inputs[layer + "mlp.down_proj.weight"], gate / (1 + np.exp(-gate)) * up, atol=1e-5
    )
    sum_ = before[0] + product("self_attn.o_proj.weight") + product("mlp.down_proj.weight")
    np.testing.assert_allclose(after[0], sum_, atol=1e-5)


def test_the_head_comes_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    from phiquant.reference import decoder as module

    decoder = Decoder(pq.open(DATA / "phi4mini"))
    hidden = decoder.embed(np.arange(8)[None])
    whole = decoder.logits(hidden)
    monkeypatch.setattr(module, "_STRIP", 1000 * 256)
    begins = [begin for begin, _ in decoder.logit_strips(hidden)]
    assert begins == [0, 1000, 2000, 3000, 4000]
    np.testing.assert_allclose(decoder.logits(hidden), whole, atol=BOUND)


def test_ids_without_an_embedding_are_refused() -> None:
    decoder = Decoder(pq.open(DATA / "phi35"))
    for ids in ([[1, 4096]], [[-1, 3]]):
        with pytest.raises(pq.UsageError, match="has no row"):
            decoder.embed(np.array(ids))
    for ids in ([1, 2], [[]], [[0.5]]):
        with pytest.raises(pq.ShapeError):
            decoder.embed(np.array(ids))


def test_a_file_that_changed_is_refused(tmp_path: Path, converted: Any) -> None:
    copy = tmp_path / "model.gguf"
    copy.write_bytes(converted("phi3win", "bf16").read_bytes())
    decoder = Decoder(pq.open(copy))
    with copy.open("ab") as file:
        file.write(b"x")
    with pytest.raises(pq.ChangedError, match="changed since"):
        decoder(np.array([[1, 2, 3]]))
