"""Verification: an output in its own runtime, beside the reference run of its weights."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.errors import FormatError, UsageError
from phiquant.evaluate.evaluation import BUILT_IN
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder
from phiquant.runtimes import Runtime, runtime_of
from phiquant.texts import table

# Enough to see a wrong rope, norm or order of rows, and quick at four billion weights.
_CONTEXT, _WINDOWS, _GREEDY = 128, 2, 16
_CHARACTERS = 2000

# How much less likely than the best token a greedy choice may be, in nats: near ties are decided by
# how the runtime rounds.
_TIE = 0.5


@dataclass(frozen=True)
class Check:
    """One question about an output, and its answer.

    Attributes
    ----------
    name : str
    passed : bool
    found, bound : str
        What was found, and what would pass.
    why : str
        Where the bound comes from.
    """

    name: str
    passed: bool
    found: str
    bound: str
    why: str


@dataclass(frozen=True, repr=False)
class Verification:
    """What an output's own runtime makes of it.

    Attributes
    ----------
    output, source : str
    runtime : str
    checks : tuple of Check
        In order; after one that makes others senseless there are no more.
    """

    output: str
    source: str
    runtime: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        rows = [
            ("pass" if one.passed else "FAIL", one.name, one.found, one.bound, one.why)
            for one in self.checks
        ]
        head = ("", "check", "found", "bound", "why")
        return f"{self.output} in {self.runtime}\n" + table(head, rows, "lllll")

    __repr__ = __str__


def verify(
    output: str | os.PathLike[str],
    against: str | os.PathLike[str] | Checkpoint,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> Verification:
    """Load an output into its runtime, and compare its tokens, logits and greedy text.

    Parameters
    ----------
    output : str or path
        What a runtime of :mod:`phiquant.runtimes` runs: a GGUF file.
    against : str, path or Checkpoint
        What it was made from.
    tokenizer : str or path, optional
        The folder of ``tokenizer.json`` where it is not the source's own.
    threads : int, optional
        One a processor by default.

    Returns
    -------
    Verification

    Raises
    ------
    phiquant.UnsupportedError
        The output has no runtime here, or it is not installed.
    phiquant.FormatError, phiquant.UsageError
        A file is damaged, or they are different models.
    """
    model = Decoder(open_checkpoint(output), threads=threads)
    runtime = runtime_of(Path(model.checkpoint.path))
    runtime.require()  # before the long work, where it is missing
    checkpoint = against if isinstance(against, Checkpoint) else open_checkpoint(against)
    source = Decoder(checkpoint, threads=threads)
    mine, its = _size(model), _size(source)
    if mine != its:
        raise UsageError(
            f"has {mine[0]} layers, a hidden size of {mine[1]} and {mine[2]} tokens, and "
            f"{checkpoint.path} {its[0]}, {its[1]} and {its[2]}: they are different models",
            file=model.checkpoint.path,
        )
    # The source says what the model is: were the output's metadata believed, nothing would show
    # that they are wrong.
    spec = replace(source.spec, tensors=model.spec.tensors, tied=model.spec.tied)
    model = Decoder(model.checkpoint, spec, threads=threads)
    # llama.cpp attends to all tokens, whatever window the file names: stay below it, everywhere.
    context = min(_CONTEXT, spec.attention.window or _CONTEXT, spec.context) // 2 * 2
    text = read_text(BUILT_IN)
    ids = windows(
        checkpoint,
        text,
        vocabulary=model.spec.vocabulary,
        context=context,
        tokens=_WINDOWS * context,
        tokenizer=tokenizer,
    )
    checks = tuple(_checks(runtime, model, source, ids, text))
    return Verification(str(model.checkpoint.path), str(checkpoint.path), runtime.name, checks)


def _size(decoder: Decoder) -> tuple[int, int, int]:
    return decoder.spec.layers, decoder.spec.hidden_size, decoder.spec.vocabulary


def _checks(
    runtime: Runtime, model: Decoder, source: Decoder, ids: NDArray[np.int64], text: str
) -> list[Check]:
    count, context = ids.shape
    path, half = Path(model.checkpoint.path), context // 2
    try:
        loaded = runtime.load(path, context=context, threads=model.threads, exact=True)
    except FormatError as error:
        return [Check("loads", False, error.cause, "loads", f"{runtime.name}'s own words")]
    with loaded:
        checks = [Check("loads", True, "loaded", "loads", "")]
        size = loaded.vocabulary
        checks.append(
            Check(
                *("vocabulary", size == model.spec.vocabulary, str(size)),
                *(str(model.spec.vocabulary), "as the source"),
            )
        )
        if not checks[-1].passed:
            return checks
        tokens = loaded.tokenize(text[:_CHARACTERS])
        wanted = ids.reshape(-1)[: len(tokens) - 1]  # the cut may change the last one
        # Windows begin with a BOS where the model has one.
        counted = np.arange(len(wanted)) % context > 0
        wrong = int((wanted != np.array(tokens[: len(wanted)]))[counted].sum())
        most = int(runtime.odd_tokens * counted.sum())
        checks.append(
            Check(
                *("tokens", wrong <= most, f"{wrong} of {int(counted.sum())} differ", str(most)),
                "tokenizer.json decides",
            )
        )
        rows = np.stack([loaded.logits(window, half + 1) for window in ids])
        greedy = min(_GREEDY, half)
        sequence = [*ids[0, :half], *loaded.greedy(ids[0, :half], greedy)]
    # What comes later changes nothing: the greedy text goes with the windows, filled up.
    last = np.array([*sequence, *[0] * (context - len(sequence))])
    ours = model(np.concatenate([ids, last[None]]), last=half + 1)
    theirs = source(ids, last=half + 1)
    nearness = _mean_kld(ours[:count], rows)
    checks.append(
        Check(
            *(
                "logits",
                nearness <= runtime.divergence,
                f"KLD {nearness:.5f}",
                f"{runtime.divergence}",
            ),
            f"of its weights in float32: {runtime.arithmetic}",
        )
    )
    lost, lost_here = _mean_kld(theirs, ours[:count]), _mean_kld(theirs, rows)
    checks.append(
        Check(
            *("source", lost_here <= lost + runtime.divergence, f"KLD {lost_here:.5f}"),
            f"{lost + runtime.divergence:.5f}",
            "what its weights lost, and that rounding",
        )
    )
    first = context - (half + 1)  # position of the first row of logits
    begin = half - 1 - first
    steps = ours[count, begin : begin + greedy]
    gaps = steps.max(axis=-1) - steps[np.arange(greedy), sequence[half:]]
    gap = float(gaps.max(initial=0))
    checks.append(
        Check(
            *("greedy text", gap <= _TIE, f"{gap:.3f} nats from best", f"{_TIE}"),
            f"{greedy} tokens; near ties may fall either way",
        )
    )
    return checks


def _mean_kld(p: NDArray[np.float32], q: NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence of logits, shape (..., vocabulary); infinite for NaN."""
    width = p.shape[-1]
    found = []
    for one, other in zip(p.reshape(-1, width), q.reshape(-1, width), strict=True):
        a, b = _logarithms(one), _logarithms(other)
        found.append(float((np.exp(a) * (a - b)).sum()))
    mean = float(np.mean(found))
    return mean if np.isfinite(mean) else float("inf")


def _logarithms(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    return values
