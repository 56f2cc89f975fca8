"""The page of an evaluation: size against divergence of all models, and what each is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.errors import PhiquantError
from phiquant.evaluate.evaluation import Evaluation, Score
from phiquant.pages.markup import Html, join, table, tag
from phiquant.pages.page import display, document, header, section
from phiquant.pages.result import Result, navigation, result_section
from phiquant.pages.samples import Pair
from phiquant.pages.scales import percent, size_unit
from phiquant.pages.scatter import Point, scatter, short_labels
from phiquant.texts import bytes_text


def evaluation_page(evaluation: Evaluation, samples: int = 6) -> str:
    """The whole page; see :meth:`phiquant.evaluate.Evaluation.to_html`."""
    results = _results(evaluation, samples) if samples else []
    name = Path(evaluation.source).name or evaluation.source
    count = len(evaluation.scores)
    title = f"{name}: what {count} models lose" if count > 1 else f"{name}: what a model loses"
    return document(
        title,
        header(title, evaluation.source, _tiles(evaluation)),
        section("Size against divergence", _candidates(evaluation)) if count > 1 else None,
        section("Models", _table(evaluation), _repeats(evaluation)),
        navigation(results),
        (result_section(result, f"result-{index}") for index, result in enumerate(results)),
    )


def evaluation_display(evaluation: Evaluation) -> str:
    """The picture and the table, for a notebook."""
    picture = _candidates(evaluation) if len(evaluation.scores) > 1 else None
    return display(picture, _table(evaluation), _repeats(evaluation))


def _tiles(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    text = "the built-in text" if evaluation.text == "built-in" else evaluation.text
    return [
        (
            "Source's perplexity",
            f"{evaluation.source_perplexity:.4g}",
            f"± {evaluation.source_perplexity_error:.2g}",
        ),
        ("Tokens scored", f"{evaluation.scored:,}", f"of {evaluation.tokens:,} read"),
        ("Text", f"{evaluation.windows} × {evaluation.context}", f"windows of {text}"),
        (
            "Time",
            f"{evaluation.seconds:.1f} s",
            f"{evaluation.reused:.0%} of the work was in the cache"
            if evaluation.reused
            else "nothing was in the cache",
        ),
    ]


def _candidates(evaluation: Evaluation) -> Html:
    unit, size = size_unit(max(score.nbytes for score in evaluation.scores))
    labels = short_labels([score.model for score in evaluation.scores])
    points = [
        Point(
            label,
            score.nbytes / size,
            score.mean_kld,
            score.mean_kld_error,
            f"{score.model}: {bytes_text(score.nbytes)}, mean KLD {score.mean_kld:.5f} ± "
            f"{score.mean_kld_error:.5f}, same top {score.top1:.2%}",
        )
        for label, score in zip(labels, evaluation.scores, strict=True)
    ]
    return join(
        scatter(points, f"size, {unit}", "mean KL divergence, nats", "Size against divergence"),
        tag(
            "p",
            "Down and to the left is better. The line is the Pareto front: no other model here is "
            "smaller and nearer to the source at once. Bars are standard errors.",
            class_="pq-note",
        ),
    )


def _table(evaluation: Evaluation) -> Html:
    head = (
        *("model", "mean KLD", "size", "bits/weight", "median", "99.9 %", "same top"),
        *("perplexity", "ratio", "rms Δp"),
    )
    ordered = sorted(evaluation.scores, key=lambda score: score.nbytes)
    return table(head, (_row(score) for score in ordered), "l" + "r" * 9)


def _row(score: Score) -> tuple[str | Html, ...]:
    return (
        tag("b", Path(score.model).name or score.model),
        _measured(f"{score.mean_kld:.5f}", f"{score.mean_kld_error:.5f}"),
        bytes_text(score.nbytes),
        f"{score.bits_per_weight:.2f}",
        f"{score.median_kld:.5f}",
        f"{score.p999_kld:.4f}",
        _measured(f"{score.top1:.2%}", f"{score.top1_error:.2%}"),
        _measured(f"{score.perplexity:.4g}", f"{score.perplexity_error:.2g}"),
        _measured(f"{score.perplexity_ratio:.4f}", f"{score.perplexity_ratio_error:.4f}"),
        percent(score.rms_dp),
    )


def _measured(value: str, error: str) -> Html:
    return join(value, tag("span", f" ± {error}", class_="pq-pm"))


def _repeats(evaluation: Evaluation) -> Html | None:
    lines = evaluation.repeats()
    return tag("ul", (tag("li", line) for line in lines), class_="pq-note") if lines else None


def _results(evaluation: Evaluation, samples: int) -> list[Result]:
    try:
        source: Checkpoint | str = open_checkpoint(evaluation.source)
    except PhiquantError:  # moved: each model's part says so
        source = evaluation.source
    titles = short_labels([score.model for score in evaluation.scores])
    found = []
    for title, score in zip(titles, evaluation.scores, strict=True):
        result = Result(title, score.model, score.nbytes, score.bits_per_weight, (), estimated=True)
        try:
            pair = Pair(source, score.model)
            found.append(
                replace(result, tensors=pair.tensors(), samples=tuple(pair.samples(samples)))
            )
        except PhiquantError as error:
            found.append(replace(result, problem=str(error)))
    return found
