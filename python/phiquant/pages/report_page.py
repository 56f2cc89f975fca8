"""The page of a report: what a run wrote, how long it took, and how far it is from the source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from phiquant.errors import PhiquantError
from phiquant.pages.heat_map import cells_of, heat_map
from phiquant.pages.markup import Html, join, table, tag
from phiquant.pages.page import display, document, header, section
from phiquant.pages.result import Result, codec_colours, navigation, result_section
from phiquant.pages.samples import Pair
from phiquant.pages.scales import percent, size_unit
from phiquant.pages.scatter import Point, scatter
from phiquant.report import OutputFile, Report, mean_error
from phiquant.texts import bytes_text


def report_page(report: Report, samples: int = 6) -> str:
    """The whole page; see :meth:`phiquant.Report.to_html`."""
    results = _results(report, samples)
    name = Path(report.source).name or report.source
    title = f"{name} → {results[0].title if len(results) == 1 else f'{len(results)} formats'}"
    return document(
        title,
        header(title, report.source, _tiles(report)),
        section("Results", _table(results, report)),
        _candidates(results),
        section("Time", _time(report)),
        navigation(results),
        (
            result_section(result, f"result-{index}", _command(hint))
            for index, (result, hint) in enumerate(zip(results, report.hints, strict=True))
        ),
        section("Notes", tag("ul", (tag("li", note) for note in dict.fromkeys(report.notes))))
        if report.notes
        else None,
    )


def report_display(report: Report) -> str:
    """The table and the heat maps, for a notebook; no file is read."""
    results = _results(report, 0)
    return display(
        _table(results, report),
        (
            join(
                tag("h4", result.title),
                heat_map(cells_of(result.tensors), codec_colours(result.tensors), estimated=False),
            )
            for result in results
        ),
        tag("p", _speed(report), class_="pq-note"),
    )


def _results(report: Report, samples: int) -> list[Result]:
    groups: dict[str, list[OutputFile]] = {}
    for file in report.files:
        groups.setdefault(file.target, []).append(file)
    found = []
    for target, files in groups.items():
        tensors = tuple(tensor for file in files for tensor in file.tensors)
        nbytes = sum(file.nbytes for file in files)
        weights = sum(tensor.weights for tensor in tensors)
        result = Result(target, files[0].result, nbytes, 8 * nbytes / max(1, weights), tensors)
        found.append(_sampled(result, report.source, samples) if samples else result)
    return found


def _sampled(result: Result, source: str, samples: int) -> Result:
    """The result with samples of its weights, or with the reason why there are none."""
    try:
        return replace(result, samples=tuple(Pair(source, result.path).samples(samples)))
    except PhiquantError as error:  # moved, changed, or a source that cannot be opened again
        return replace(result, problem=str(error))


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    return [
        ("Read", bytes_text(report.source_bytes), "each tensor once"),
        (
            "Written",
            bytes_text(report.nbytes),
            f"{len(report.files)} file{'s' * (len(report.files) > 1)}",
        ),
        (
            "Time",
            f"{report.seconds:.2f} s",
            f"{bytes_text(report.source_bytes / max(1e-9, report.seconds))} per second",
        ),
        (
            "Workers",
            f"{report.threads} thread{'s' * (report.threads > 1)}",
            f"{report.arch} kernels",
        ),
    ]


def _speed(report: Report) -> str:
    return (
        f"{bytes_text(report.source_bytes)} read in {report.seconds:.2f} s "
        f"({report.threads} threads, {report.arch})"
    )


def _table(results: list[Result], report: Report) -> Html:
    return table(
        ("target", "size", "bits/weight", "rms error", "of the source", "result"),
        (
            (
                tag("b", result.title),
                bytes_text(result.nbytes),
                f"{result.bits_per_weight:.2f}",
                percent(mean_error(result.tensors)),
                f"{result.nbytes / max(1, report.source_bytes):.1%}",
                tag("code", result.path),
            )
            for result in results
        ),
        "lrrrrl",
    )


def _candidates(results: list[Result]) -> Html | None:
    """Size against error, where there is something to choose from."""
    if len(results) < 2:
        return None
    unit, size = size_unit(max(result.nbytes for result in results))
    points = [
        Point(
            result.title,
            result.nbytes / size,
            100 * mean_error(result.tensors),
            0.0,
            f"{result.title}: {bytes_text(result.nbytes)}, {percent(mean_error(result.tensors))}",
        )
        for result in results
    ]
    return section(
        "Size against error",
        scatter(points, f"size, {unit}", "rms error of all weights, %", "Size against error"),
        tag(
            "p",
            "The line is the Pareto front: no other target is smaller and nearer to the source at "
            "once. Errors of weights are a guide only; ",
            tag("code", "phiquant eval"),
            " measures what the model's answers lose.",
            class_="pq-note",
        ),
    )


def _time(report: Report) -> Html:
    rest = max(0.0, report.seconds - report.seconds_encoding - report.seconds_syncing)
    parts = (
        ("read, encode, write", report.seconds_encoding, 0),
        ("sync to the disk", report.seconds_syncing, 1),
        ("check, rename and all else", rest, 7),
    )
    total = sum(seconds for _, seconds, _ in parts) or 1.0
    return join(
        tag(
            "div",
            (
                tag(
                    "i",
                    class_=f"pq-f{colour}",
                    style=f"flex-grow:{max(0.001, seconds / total):.4f}",
                    title=f"{name}: {seconds:.3f} s",
                )
                for name, seconds, colour in parts
            ),
            class_="pq-stack",
        ),
        tag(
            "div",
            (
                tag(
                    "span",
                    tag("i", class_=f"pq-dot pq-f{colour}"),
                    f"{name} ",
                    tag("b", f"{seconds:.2f} s"),
                    class_="pq-key",
                )
                for name, seconds, colour in parts
            ),
            class_="pq-legend",
        ),
    )


def _command(hint: str) -> Html | None:
    return tag("p", "Run it: ", tag("code", hint)) if hint else None
