"""Evaluation: models read a text beside their source, and the differences become statistics."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.errors import FormatError, UsageError
from phiquant.evaluate.reading import Reading
from phiquant.evaluate.repetition import Repetition, Texts, default_count, ends_of
from phiquant.evaluate.tokens import Divergences, Likelihoods
from phiquant.measure.bar import Bar
from phiquant.measure.layers import check_memory
from phiquant.measure.store import Store
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder
from phiquant.texts import bytes_text, table

#: The text that is read where none is given; its licences stand beside it.
BUILT_IN = Path(__file__).with_name("text.txt")

# The largest power of e that a float64 holds. Models that bad need no more digits.
_LARGEST = 700.0

Source = str | os.PathLike[str] | Checkpoint


@dataclass(frozen=True)
class Score:
    """One model's distance from its source. Errors are standard errors of the mean over tokens.

    Attributes
    ----------
    model : str
    nbytes : int
        Of its tensors.
    bits_per_weight : float
    perplexity, perplexity_error : float
    perplexity_ratio, perplexity_ratio_error : float
        Relative to the source's; the error takes into account that both read the same text.
    mean_kld, mean_kld_error, median_kld, p999_kld, max_kld : float
        Kullback-Leibler divergence from the source's probabilities, in nats.
    rms_dp, rms_dp_error : float
        Root mean square of the change in the probability of the text's own token, from 0 to 1.
    top1, top1_error : float
        Share of tokens for which source and model have the same most likely token.
    repetition : Repetition or None
        What its greedy texts repeat; None where they were not asked for.
    """

    model: str
    nbytes: int
    bits_per_weight: float
    perplexity: float
    perplexity_error: float
    perplexity_ratio: float
    perplexity_ratio_error: float
    mean_kld: float
    mean_kld_error: float
    median_kld: float
    p999_kld: float
    max_kld: float
    rms_dp: float
    rms_dp_error: float
    top1: float
    top1_error: float
    repetition: Repetition | None


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What models are worth, as far as a text tells.

    Attributes
    ----------
    source : str
    source_perplexity, source_perplexity_error : float
    source_repetition : Repetition or None
        What the source's greedy texts repeat; None where they were not asked for.
    text : str
        The file, or ``built-in``.
    windows, context : int
        How many windows of text, and the tokens of each.
    scored : int
        Tokens that count: the second half of each window.
    scores : tuple of Score
        In the models' order.
    seconds : float
    reused : float
        Share of the work that earlier runs had left in the cache, from 0 to 1.
    """

    source: str
    source_perplexity: float
    source_perplexity_error: float
    source_repetition: Repetition | None
    text: str
    windows: int
    context: int
    scored: int
    scores: tuple[Score, ...]
    seconds: float
    reused: float

    @property
    def tokens(self) -> int:
        """Tokens in all windows."""
        return self.windows * self.context

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data; ``models`` holds the scores."""
        facts = asdict(self)
        models = facts.pop("scores")
        return facts | {"tokens": self.tokens, "models": models}

    def to_html(self, *, samples: int = 6) -> str:
        """All of it as one self-contained HTML page, without scripts or requests.

        Size against divergence with the Pareto front, all numbers, and of each model the error of
        its tensors by layer and module, where its bytes go, and weights against their levels. For
        the latter some rows are read again from the source and the models, which takes seconds;
        where they have moved, the page says so.

        Parameters
        ----------
        samples : int
            Matrices of each model to draw weights of; 0 reads no file, and shows the numbers only.
        """
        from phiquant.pages.evaluation_page import evaluation_page

        return evaluation_page(self, samples)

    def _repr_html_(self) -> str:
        from phiquant.pages.evaluation_page import evaluation_display

        return evaluation_display(self)

    def __str__(self) -> str:
        rows = [
            (
                score.model,
                bytes_text(score.nbytes),
                f"{score.bits_per_weight:.2f}",
                f"{score.perplexity:.4g} ± {score.perplexity_error:.2g}",
                f"{score.perplexity_ratio:.4f} ± {score.perplexity_ratio_error:.4f}",
                f"{score.mean_kld:.5f} ± {score.mean_kld_error:.5f}",
                f"{score.median_kld:.5f}",
                f"{score.p999_kld:.4f}",
                f"{score.rms_dp:.2%}",
                f"{score.top1:.2%} ± {score.top1_error:.2%}",
                *([f"{score.repetition.share:.1%}"] if score.repetition else []),
            )
            for score in self.scores
        ]
        head = (
            *("model", "size", "bits/weight", "perplexity", "ratio"),
            *("mean KLD", "median", "99.9%", "rms Δp", "same top"),
            *(["repeats"] if self.source_repetition else []),
        )
        text = "the built-in text" if self.text == "built-in" else self.text
        return (
            f"{self.source}: perplexity {self.source_perplexity:.4g} ± "
            f"{self.source_perplexity_error:.2g} ({self.scored} tokens scored in {self.windows} "
            f"windows of {self.context}, {text})\n"
            + table(head, rows, "l".ljust(len(head), "r"))
            + "".join(f"\n{line}" for line in self.repeats())
        )

    def repeats(self) -> list[str]:
        """What the column of repetition means, and each loop that the source does not have."""
        if self.source_repetition is None:
            return []
        lines = [
            f"repeats: greedy texts of the source say {self.source_repetition.share:.1%} of their "
            f"runs of four tokens again, and {len(self.source_repetition.loops)} end in a loop"
        ]
        for score in self.scores:
            for loop in score.repetition.new if score.repetition else ():
                many = "1 token" if loop.period == 1 else f"{loop.period} tokens"
                lines.append(
                    f"{score.model}: after prompt {loop.prompt + 1}, a loop of {many} from token "
                    f"{loop.begin + 1} on, where the source has none"
                )
        return lines

    __repr__ = __str__


def evaluate(
    models: Source | Sequence[Source],
    against: Source,
    *,
    text: str | os.PathLike[str] | None = None,
    context: int = 512,
    tokens: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    repetition: int | None = None,
    threads: int | None = None,
    cache: bool | Store = True,
    progress: bool | Callable[[int, int], None] = False,
) -> Evaluation:
    """Compare models with their source, as llama-perplexity --kl-divergence does.

    The text is cut into windows, each read by itself, with a BOS token first where the model has
    one; the second half of each is scored. All models go through it in float32, one layer's weights
    in memory at a time, and the source once for all of them.

    Parameters
    ----------
    models : str, path or Checkpoint, or a sequence of them
        A GGUF file of any type that phiquant decodes, a Hugging Face folder, or a hub id.
    against : str, path or Checkpoint
        What they were made from, or anything else with the same vocabulary.
    text : str or path, optional
        A UTF-8 file; by default some documentation that comes with phiquant.
    context : int
        Tokens of a window.
    tokens : int, optional
        At most so many; all of the text by default.
    tokenizer : str or path, optional
        The folder of ``tokenizer.json`` where it is not the source's own.
    repetition : int, optional
        Tokens to generate greedily after each of up to eight prompts, to see what they repeat: each
        may cost a pass over the weights. 0 generates none. By default it is one for each 640 tokens
        of the text, which takes about an eighth of the time; at most 32, and none below 8.
    threads : int, optional
        One a processor by default.
    cache : bool or Store
        Whether to keep what is done in the user's cache folder, or another store, and to go on from
        what is there: a run that was stopped, or another model's with the same source and text.
        No bit of the result depends on it.
    progress : bool or callable
        True shows a bar; a function is called with what is done and what there is, in
        multiplications.

    Returns
    -------
    Evaluation

    Raises
    ------
    phiquant.UsageError
        No model, or a text shorter than a window.
    phiquant.UnsupportedError
        A model is none that phiquant can run, or the source has no ``tokenizer.json``.
    phiquant.FormatError
        A file is damaged, or a model is not one of the source's shape.
    phiquant.ValueRangeError
        A model's activations or logits become NaN or infinite.
    """
    start = time.perf_counter()
    listed = [models] if isinstance(models, (str, os.PathLike, Checkpoint)) else list(models)
    if not listed:
        raise UsageError("there is no model to evaluate")
    if repetition is not None and (type(repetition) is not int or repetition < 0):
        raise UsageError(f"repetition must be a number from 0 on, not {repetition!r}")
    decoders = [Decoder(_open(one), threads=threads) for one in (against, *listed)]
    source = decoders[0]
    for decoder in decoders:
        _check(decoder, source, context)
    ids = windows(
        source.checkpoint,
        read_text(BUILT_IN if text is None else text),
        vocabulary=source.spec.vocabulary,
        context=context,
        tokens=tokens,
        tokenizer=tokenizer,
    )
    check_memory(
        Reading.memory(source, decoders[1:], ids),
        ids.size,
        "Read shorter windows: --context 512 (context=512).",
    )
    store = Store() if cache is True else cache or None
    reading = Reading(source, decoders[1:], ids, store)
    ends = ends_of(source.checkpoint, source.spec.vocabulary, tokenizer)
    count = default_count(ids.size) if repetition is None else repetition
    texts = Texts(source, decoders[1:], ids, count, ends=ends, store=store)
    total, begun = reading.total + texts.total, reading.begun + texts.begun
    with Bar(progress, total, about="evaluating", unit="mul", begin=begun) as watch:
        base, found = reading.run(lambda done: watch(done + texts.begun))
        repeats = texts.run(lambda done: watch(reading.total + max(done, texts.begun)))
    scores = tuple(
        _score(decoder.checkpoint, base, divergences, repeated)
        for decoder, divergences, repeated in zip(decoders[1:], found, repeats[1:], strict=True)
    )
    mean, error = _mean(base.surprise)
    return Evaluation(
        source=str(source.checkpoint.path),
        source_perplexity=_power(mean),
        source_perplexity_error=_power(mean) * error,
        source_repetition=repeats[0],
        text="built-in" if text is None else os.fspath(text),
        windows=len(ids),
        context=context,
        scored=base.surprise.size,
        scores=scores,
        seconds=time.perf_counter() - start,
        reused=reading.reused / reading.total,
    )


def _open(source: Source) -> Checkpoint:
    return source if isinstance(source, Checkpoint) else open_checkpoint(source)


def _check(decoder: Decoder, source: Decoder, context: int) -> None:
    spec, wanted = decoder.spec, source.spec
    if not 4 <= context <= spec.context:
        raise UsageError(
            f"a context of {context} is not from 4 to {spec.context}, which the model is made for",
            file=decoder.checkpoint.path,
        )
    mine, its = (spec.vocabulary, spec.hidden_size), (wanted.vocabulary, wanted.hidden_size)
    if mine != its:
        raise FormatError(
            f"has {mine[0]} tokens and a hidden size of {mine[1]}, and the source {its[0]} and "
            f"{its[1]}: it was not made from {source.checkpoint.path}",
            file=decoder.checkpoint.path,
            remedy="Name the original model: --against SRC (against=...).",
        )


def _score(
    checkpoint: Checkpoint, base: Likelihoods, model: Divergences, repeats: Repetition | None
) -> Score:
    surprise, surprise_error = _mean(model.surprise)
    ratio, ratio_error = _mean(model.surprise - base.surprise)
    divergence = np.maximum(model.kld, 0)
    kld, kld_error = _mean(divergence)
    change, change_error = _mean((np.exp(-model.surprise) - np.exp(-base.surprise)) ** 2)
    same, same_error = _mean((model.top == base.top).astype(np.float64))
    weights = sum(math.prod(entry.shape) for entry in checkpoint.entries.values())
    rms = math.sqrt(change)
    return Score(
        model=str(checkpoint.path),
        nbytes=checkpoint.nbytes,
        bits_per_weight=8 * checkpoint.nbytes / weights,
        perplexity=_power(surprise),
        perplexity_error=_power(surprise) * surprise_error,
        perplexity_ratio=_power(ratio),
        perplexity_ratio_error=_power(ratio) * ratio_error,
        mean_kld=kld,
        mean_kld_error=kld_error,
        median_kld=float(np.median(divergence)),
        p999_kld=float(np.quantile(divergence, 0.999)),
        max_kld=float(divergence.max()),
        rms_dp=rms,
        # Of a square root: the error of what is under it, times the derivative.
        rms_dp_error=change_error / (2 * rms) if rms else 0.0,
        top1=same,
        top1_error=same_error,
        repetition=repeats,
    )


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and its standard error, which is 0 of a single value."""
    if values.size < 2:
        return float(values.mean()), 0.0
    return float(values.mean()), float(values.std() / math.sqrt(values.size - 1))


def _power(exponent: float) -> float:
    return math.exp(min(exponent, _LARGEST))
