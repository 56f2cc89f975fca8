"""The heat map: relative error of every matrix, by layer and module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from phiquant.pages.markup import Html, breakable, join, tag
from phiquant.pages.modules import Place, model_order, place_of, short_modules
from phiquant.pages.scales import HEAT_STEPS, heat_step, percent
from phiquant.report import TensorReport
from phiquant.texts import bytes_text


@dataclass(frozen=True)
class Cell:
    """One source tensor's encodings together.

    Attributes
    ----------
    name : str
        In the source.
    place : Place
    codecs : tuple of str
    shape : tuple of int
    nbytes : int
        With all planes.
    error : float
        Relative root mean square.
    """

    name: str
    place: Place
    codecs: tuple[str, ...]
    shape: tuple[int, ...]
    nbytes: int
    error: float


def cells_of(tensors: Sequence[TensorReport]) -> list[Cell]:
    """A cell for each source tensor with weights; planes and parts of one are joined."""
    groups: dict[str, list[TensorReport]] = {}
    for tensor in tensors:
        if tensor.source is not None:
            groups.setdefault(tensor.source, []).append(tensor)
    cells = []
    for name, members in groups.items():
        weights = sum(t.weights for t in members)
        if not weights:
            continue
        total = sum(t.weights * t.relative_error**2 for t in members)
        cells.append(
            Cell(
                name,
                place_of(name),
                tuple(dict.fromkeys(short_codec(t.codec) for t in members)),
                members[0].shape,
                sum(t.nbytes for t in members),
                math.sqrt(total / weights),
            )
        )
    return cells


def short_codec(codec: str) -> str:
    """A codec's name without its options: ``int4_sym_g32,rule=nncf`` is ``int4_sym_g32``."""
    return codec.partition(",")[0]


def heat_map(cells: Sequence[Cell], colour_of: dict[str, int], *, estimated: bool) -> Html:
    """Cells of all matrices with a loss, with a legend; what is stored exactly is counted.

    Parameters
    ----------
    cells : sequence of Cell
    colour_of : dict of str to int
        Each codec's colour.
    estimated : bool
        Whether errors come from some rows only.
    """
    matrices = [cell for cell in cells if len(cell.shape) > 1]
    lossy = {cell.place.module for cell in matrices if cell.error > 0}
    shown = [cell for cell in matrices if cell.place.module in lossy]
    exact = len(cells) - len(shown)
    if not shown:
        return tag("p", "Every tensor is stored exactly: there is no error to show.")
    errors = [cell.error for cell in shown if cell.error > 0]
    low, high = min(errors), max(errors)
    inside = [cell for cell in shown if cell.place.layer is not None]
    outside = [cell for cell in shown if cell.place.layer is None]
    # A narrow range is no reason for strong colours.
    low = min(low, high / 2)
    worst = max(shown, key=lambda cell: cell.error)
    codecs = [codec for codec in colour_of if any(codec in cell.codecs for cell in shown)]

    def box(cell: Cell, label: str | None = None) -> Html:
        words = (
            f"{cell.name}: {percent(cell.error)}, {' + '.join(cell.codecs)}, "
            f"{bytes_text(cell.nbytes)}"
        )
        step = f"pq-h{heat_step(cell.error, low, high)}" if cell.error else "pq-exact"
        return tag(
            "div",
            tag("small", label) if label else None,
            tag("span", _in_percent(cell.error)),
            class_=f"pq-cell {step} pq-b{colour_of[cell.codecs[0]]}",
            title=words,
            role="img",
            aria_label=words,
            data_module=cell.place.module,
            data_layer=None if cell.place.layer is None else str(cell.place.layer),
        )

    return join(
        _grid(inside, box) if inside else None,
        tag(
            "div",
            (box(cell, label=cell.place.module) for cell in outside),
            class_="pq-outside",
            aria_label="Outside the layers",
            role="group",
        )
        if outside
        else None,
        _legend(low, high, codecs, colour_of),
        tag(
            "p",
            "Root mean square of the decoded weights' difference from the source's, relative to "
            "the source's own, in percent. ",
            f"The largest is that of {worst.name}. ",
            "Estimated from some rows of each tensor. " if estimated else None,
            f"{exact} more {'tensor is' if exact == 1 else 'tensors are'} stored exactly."
            if exact
            else None,
            class_="pq-note",
        ),
    )


def _grid(cells: Sequence[Cell], box: object) -> Html:
    """Modules and layers; which of them are rows is the style sheet's choice, by the width."""
    assert callable(box)
    modules = model_order(cell.place.module for cell in cells)
    layers = sorted({cell.place.layer for cell in cells if cell.place.layer is not None})
    named = short_modules(modules)
    at = {cell.place: cell for cell in cells}
    lines = [
        tag("div", "layer", class_="pq-corner"),
        *(
            tag("div", breakable(named[module]), class_="pq-module", title=module)
            for module in modules
        ),
    ]
    for layer in layers:
        lines.append(tag("div", str(layer), class_="pq-layer"))
        for module in modules:
            cell = at.get(Place(layer, module))
            lines.append(box(cell) if cell else tag("div", class_="pq-none"))
    return tag(
        "div",
        lines,
        class_="pq-heat",
        style=f"--modules:{len(modules)};--layers:{len(layers)}",
        role="group",
        aria_label="Relative error by layer and module",
    )


def _legend(low: float, high: float, codecs: Sequence[str], colour_of: dict[str, int]) -> Html:
    scale = tag(
        "span",
        percent(low),
        tag(
            "span",
            (tag("i", class_=f"pq-h{step}") for step in range(HEAT_STEPS)),
            class_="pq-scale",
        ),
        percent(high),
        class_="pq-key",
    )
    return tag(
        "div",
        scale,
        tag(
            "span",
            (
                tag(
                    "span",
                    tag("i", class_=f"pq-line pq-f{colour_of[codec]}"),
                    codec,
                    class_="pq-key",
                )
                for codec in codecs
            ),
            class_="pq-keys",
        ),
        class_="pq-legend",
    )


def _in_percent(error: float) -> str:
    value = 100 * error
    return "0" if value == 0 else f"{value:.2f}" if value < 0.995 else f"{value:.1f}"
