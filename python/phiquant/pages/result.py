"""The parts that show one result: heat map, bytes, weights against codes, and a table of it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phiquant.pages.byte_bars import byte_bars, shares
from phiquant.pages.distribution import distributions
from phiquant.pages.heat_map import cells_of, heat_map, short_codec
from phiquant.pages.markup import Child, Html, join, table, tag
from phiquant.pages.page import folded, section
from phiquant.pages.samples import Sample
from phiquant.pages.scales import colours, percent
from phiquant.report import TensorReport
from phiquant.texts import bytes_text


@dataclass(frozen=True)
class Result:
    """What there is to show of one result.

    Attributes
    ----------
    title : str
    path : str
    nbytes : int
        Of its files.
    bits_per_weight : float
    tensors : tuple of TensorReport
    estimated : bool
        Whether the errors come from some rows only.
    samples : tuple of Sample
    problem : str or None
        Why nothing could be read back.
    """

    title: str
    path: str
    nbytes: int
    bits_per_weight: float
    tensors: tuple[TensorReport, ...]
    estimated: bool = False
    samples: tuple[Sample, ...] = ()
    problem: str | None = None


def codec_colours(tensors: Sequence[TensorReport]) -> dict[str, int]:
    """A colour for each codec; those with the most bytes first."""
    totals: dict[str, int] = {}
    for tensor in tensors:
        codec = short_codec(tensor.codec)
        totals[codec] = totals.get(codec, 0) + tensor.nbytes
    return colours(sorted(totals, key=lambda codec: -totals[codec]))


def result_section(result: Result, anchor: str, *more: Child) -> Html:
    """All that is to be seen of one result; ``more`` comes last."""
    colour_of = codec_colours(result.tensors)
    cells = cells_of(result.tensors)
    return section(
        result.title,
        tag(
            "p",
            result.path,
            f" · {bytes_text(result.nbytes)} · {result.bits_per_weight:.2f} bits per weight",
            class_="pq-path",
        ),
        section("Error of each matrix", heat_map(cells, colour_of, estimated=result.estimated),
                level=3) if cells else None,
        section("Where the bytes go", byte_bars(shares(result.tensors, result.nbytes), colour_of),
                level=3),
        section("Weights against their codes", distributions(result.samples, colour_of), level=3)
        if result.samples
        else None,
        tag("p", f"Weights could not be read back: {result.problem}", class_="pq-problem")
        if result.problem
        else None,
        folded(f"All {len(result.tensors)} tensors as a table", tensor_table(result)),
        more,
        anchor=anchor,
    )  # fmt: skip


def tensor_table(result: Result) -> Html:
    """A row for each tensor, with what the pictures show and the checksums."""
    checked = any(tensor.crc32c for tensor in result.tensors)
    head = ("tensor", "codec", "shape", "size", "rms error", *(["CRC-32C"] if checked else []))
    return table(
        head,
        (
            (
                tensor.name,
                tensor.codec,
                " × ".join(map(str, tensor.shape)),
                bytes_text(tensor.nbytes),
                percent(tensor.relative_error) if tensor.weights else "",
                *([tag("code", tensor.crc32c)] if checked else []),
            )
            for tensor in result.tensors
        ),
        "llrrr" + "l" * checked,
    )


def navigation(results: Sequence[Result]) -> Html | None:
    """Links to the results, where there are several."""
    if len(results) < 2:
        return None
    return tag(
        "nav",
        join(
            tag("a", result.title, href=f"#result-{index}") for index, result in enumerate(results)
        ),
    )
