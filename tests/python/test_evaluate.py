"""Evaluation tells a model from its source: statistics, windows, gates, and what cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import phiquant

import phiquant as pq
from phiquant.evaluate import Evaluation, Gates, evaluate
from phiquant.evaluate.evaluation import BUILT_IN
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder
from places import DATA
from tiny_model import write_model

TEXT = DATA / "eval.txt"
TRAINED = ("phi35", "phi4mini")
# Enough tokens for standard errors, and quick.
SETTINGS: dict[str, Any] = {"context": 128, "tokens": 1024, "text": TEXT, "threads": 1}


@pytest.fixture(scope="module")
def scored(converted: Any) -> Evaluation:
    """Two presets of phi35 beside their source."""
    models = [converted("phi35", preset) for preset in ("q8_0", "q4_0")]
    return evaluate(models, DATA / "phi35", **SETTINGS)


@pytest.mark.parametrize("fixture", TRAINED)
def test_full_precision_is_at_no_distance_from_itself(fixture: str, converted: Any) -> None:
    """Not a little: the same weights give the same bits, whatever holds them."""
    models = [DATA / fixture, converted(fixture, "bf16"), converted(fixture, "f32")]
    result = evaluate(models, DATA / fixture, **SETTINGS)
    for score in result.scores:
        assert score.perplexity == result.source_perplexity
        assert (score.mean_kld, score.max_kld, score.p999_kld, score.rms_dp) == (0, 0, 0, 0)
        assert (score.perplexity_ratio, score.top1) == (1, 1)


@pytest.mark.parametrize("fixture", TRAINED)
def test_numbers_are_those_of_whole_logits_in_double_precision(
    fixture: str, converted: Any
) -> None:
    """The definitions, written down once more over all of the vocabulary."""
    model = converted(fixture, "q4_k_m")
    result = evaluate(model, DATA / fixture, **SETTINGS)
    source = pq.open(DATA / fixture)
    ids = windows(source, read_text(TEXT), vocabulary=4096, context=128, tokens=1024)
    assert ids.shape == (8, 128)
    rows, columns = slice(64, 127), slice(65, 128)  # logits, and the tokens that they foretell
    p, q = (_log_softmax(Decoder(pq.open(one))(ids)[:, rows]) for one in (DATA / fixture, model))
    target = ids[:, columns, None]
    ours, its = (-np.take_along_axis(one, target, -1).ravel() for one in (q, p))
    kld = (np.exp(p) * (p - q)).sum(-1).ravel()
    change = np.exp(-ours) - np.exp(-its)
    same = (p.argmax(-1) == q.argmax(-1)).ravel()
    [score] = result.scores
    assert result.scored == kld.size == 8 * 63
    close = {"rtol": 1e-5, "atol": 1e-7}  # float32 exponentials, and another order of sums
    root = np.sqrt(kld.size - 1)
    for got, wanted in (
        (result.source_perplexity, np.exp(its.mean())),
        (result.source_perplexity_error, np.exp(its.mean()) * its.std() / root),
        (score.perplexity, np.exp(ours.mean())),
        (score.perplexity_error, np.exp(ours.mean()) * ours.std() / root),
        (score.perplexity_ratio, np.exp((ours - its).mean())),
        (score.perplexity_ratio_error, np.exp((ours - its).mean()) * (ours - its).std() / root),
        (score.mean_kld, kld.mean()),
        (score.mean_kld_error, kld.std() / root),
        (score.median_kld, np.median(kld)),
        (score.p999_kld, np.quantile(kld, 0.999)),
        (score.max_kld, kld.max()),
        (score.rms_dp, np.sqrt((change**2).mean())),
        (score.top1, same.mean()),
        (score.top1_error, np.sqrt(same.mean() * (1 - same.mean()) / (same.size - 1))),
    ):
        np.testing.assert_allclose(got, wanted, **close)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_more_bits_are_nearer(scored: Evaluation) -> None:
    eight, four = scored.scores
    assert 0 < eight.mean_kld < four.mean_kld / 10
    assert eight.rms_dp < four.rms_dp
    assert eight.top1 > four.top1
    assert 0 < eight.median_kld < eight.p999_kld <= eight.max_kld


def test_several_models_are_scored_as_each_alone(scored: Evaluation, converted: Any) -> None:
    alone = evaluate(converted("phi35", "q4_0"), DATA / "phi35", **SETTINGS)
    assert alone.scores[0] == scored.scores[1]


def test_a_source_may_be_quantized(scored: Evaluation, converted: Any) -> None:
    source = converted("phi35", "q8_0")
    result = evaluate(
        [converted("phi35", "q4_0"), source], source, tokenizer=DATA / "phi35", **SETTINGS
    )
    assert result.source_perplexity == scored.scores[0].perplexity
    assert result.scores[1].max_kld == 0
    # Divergence is no metric, but q8_0 is near enough its source to stand in for it.
    assert result.scores[0].mean_kld == pytest.approx(scored.scores[1].mean_kld, rel=0.1)


def test_what_json_has(scored: Evaluation) -> None:
    facts = json.loads(json.dumps(scored.to_json()))
    assert (facts["windows"], facts["context"], facts["tokens"]) == (8, 128, 1024)
    assert facts["text"] == str(TEXT)
    wanted = ("perplexity", "perplexity_ratio", "mean_kld", "rms_dp", "top1")
    for model in facts["models"]:
        for key in (*wanted, *(f"{key}_error" for key in wanted), "median_kld", "p999_kld"):
            assert isinstance(model[key], float), key
    assert facts["models"][0]["bits_per_weight"] == pytest.approx(8.51, abs=0.01)


def test_gates_name_what_is_missed_and_by_how_much(scored: Evaluation) -> None:
    four = scored.scores[1]
    assert Gates().missed(scored) == []
    assert Gates(four.mean_kld, four.perplexity_ratio, four.top1).missed(scored) == []
    [miss] = Gates(max_kld=0.001).missed(scored)
    assert (miss.model, miss.value, miss.bound) == (four.model, four.mean_kld, 0.001)
    assert f"mean KL divergence {four.mean_kld:.5g} is above the gate of 0.001, by" in str(miss)
    assert [m.gate for m in Gates(0, 0.5, 1.0).missed(scored)] == 2 * [
        "max_kld", "max_perplexity_ratio", "min_top1",
    ]  # fmt: skip
    assert "below" in str(Gates(min_top1=1.0).missed(scored)[0])
    nan = float("nan")
    assert len(Gates(nan, nan, nan).missed(scored)) == 6  # no bound is no pass


def test_the_built_in_text_is_the_default(converted: Any) -> None:
    assert read_text(TEXT).startswith(read_text(BUILT_IN))  # held out from training
    licence = BUILT_IN.with_name("text.LICENSE.txt").read_text()
    assert "PostgreSQL Licence" in licence and "Python Software Foundation" in licence
    result = evaluate(DATA / "phi35", DATA / "phi35", context=64, tokens=64, threads=1)
    assert (result.text, result.scored) == ("built-in", 31)


def test_the_command_tells_and_gates(converted: Any) -> None:
    options = ("--against", DATA / "phi35", "--context", 64, "--tokens", 256, "--threads", 1)
    model = converted("phi35", "q4_0")
    done = phiquant("eval", model, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{DATA / 'phi35'}: perplexity" in done.stdout
    assert "mean KLD" in done.stdout and "the built-in text" in done.stdout
    done = phiquant("eval", model, *options, "--json", "--max-kld", "0", "--min-top1", 0.1)
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert f"{model}: mean KL divergence" in done.stderr
    facts = json.loads(done.stdout)
    assert [miss["gate"] for miss in facts["missed"]] == ["max_kld"]
    assert facts["models"][0]["mean_kld"] == facts["missed"][0]["value"]
    done = phiquant("eval", model, *options, "-q", "--max-perplexity-ratio", 2)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_model_is_refused(tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", hidden_size=512)
    with pytest.raises(pq.FormatError, match="it was not made from"):
        evaluate(other, DATA / "phi35", **SETTINGS)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    phi = DATA / "phi35"
    with pytest.raises(pq.UsageError, match="no model"):
        evaluate([], phi)
    for context in (3, 8193):
        with pytest.raises(pq.UsageError, match="is not from 4 to 8192"):
            evaluate(phi, phi, context=context)
    with pytest.raises(pq.UsageError, match="less than one window"):
        evaluate(phi, phi, context=128, tokens=127)
    shutil.copytree(phi, tmp_path / "phi", ignore=shutil.ignore_patterns("token*"))
    with pytest.raises(pq.UnsupportedError, match=r"tokenizer\.json: is missing"):
        evaluate(phi, tmp_path / "phi", **SETTINGS)


def test_logits_beyond_float32_are_no_result(tmp_path: Path) -> None:
    import ml_dtypes

    from tiny_model import config_of, weights_of

    weights = weights_of(config_of(tie_word_embeddings=False))
    head = np.full_like(weights["lm_head.weight"], 3e38, dtype=ml_dtypes.bfloat16)
    head[::2] *= -1
    model = write_model(
        tmp_path / "x", weights | {"lm_head.weight": head}, tie_word_embeddings=False
    )
    with pytest.raises(pq.ValueRangeError, match="logits that are NaN or infinite") as caught:
        evaluate(model, DATA / "phi35", context=64, tokens=64, threads=1)
    assert caught.value.tensor == "lm_head.weight"
