"""Plots through matplotlib, for notebooks and papers; ``pip install 'phiquant[plots]'``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from phiquant.errors import ShapeError, UnsupportedError
from phiquant.tensor import QuantizedTensor, as_float32

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from phiquant.evaluate import Evaluation
    from phiquant.report import Report


def plot_error(report: Report, *, target: str | None = None, ax: Axes | None = None) -> Axes:
    """The relative error of every matrix as a heat map over layers and modules.

    Parameters
    ----------
    report : Report
        As :func:`phiquant.convert` gives it.
    target : str, optional
        Which result, as ``"gguf:q4_k_m"``; the first one by default.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    phiquant.UnsupportedError
        matplotlib is not installed, or there is no such target, or nothing in it has an error.
    """
    from phiquant.pages.heat_map import cells_of
    from phiquant.pages.modules import model_order, short_modules

    wanted = report.files[0].target if target is None else target
    files = [file for file in report.files if file.target == wanted]
    cells = [
        cell
        for cell in cells_of([tensor for file in files for tensor in file.tensors])
        if len(cell.shape) > 1 and cell.place.layer is not None
    ]
    if not any(cell.error for cell in cells):
        known = ", ".join(dict.fromkeys(file.target for file in report.files))
        raise UnsupportedError(
            f"{wanted} has no layers with errors to plot", remedy=f"The report has: {known}."
        )
    ax = _axes(ax, width=max(5.0, 0.3 * len(cells) ** 0.5 + 6))
    modules = model_order(cell.place.module for cell in cells)
    layers = sorted({cell.place.layer for cell in cells if cell.place.layer is not None})
    values = np.full((len(modules), len(layers)), np.nan)
    for cell in cells:
        assert cell.place.layer is not None
        row, column = modules.index(cell.place.module), layers.index(cell.place.layer)
        values[row, column] = 100 * cell.error
    image = ax.imshow(values, cmap="Blues", vmin=0, aspect="auto")
    named = short_modules(modules)
    ax.set_yticks(range(len(modules)), [named[module] for module in modules])
    step = -(-len(layers) // 16)
    ax.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    ax.set(xlabel="layer", title=wanted)
    ax.figure.colorbar(image, ax=ax, label="relative rms error, %")
    return ax


def plot_candidates(
    evaluations: Evaluation | Sequence[Evaluation], *, ax: Axes | None = None
) -> Axes:
    """Size against divergence of all models, with standard errors and the Pareto front.

    Parameters
    ----------
    evaluations : Evaluation or a sequence of them
        As :func:`phiquant.evaluate.evaluate` gives them, with the same source and text.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    phiquant.UnsupportedError
        matplotlib is not installed.
    """
    from phiquant.evaluate import Evaluation
    from phiquant.pages.scales import size_unit
    from phiquant.pages.scatter import Point, front, short_labels

    listed = [evaluations] if isinstance(evaluations, Evaluation) else list(evaluations)
    scores = [score for evaluation in listed for score in evaluation.scores]
    ax = _axes(ax)
    unit, size = size_unit(max(score.nbytes for score in scores))
    points = [
        Point(label, score.nbytes / size, score.mean_kld, score.mean_kld_error, "")
        for label, score in zip(short_labels([s.model for s in scores]), scores, strict=True)
    ]
    best = front(points)
    ax.step(
        [point.x for point in best], [point.y for point in best],
        where="post", color="tab:blue", alpha=0.4, zorder=1,
    )  # fmt: skip
    ax.errorbar(
        [point.x for point in points], [point.y for point in points],
        yerr=[point.y_error for point in points], fmt="o", color="tab:blue", markersize=5,
    )  # fmt: skip
    for point in points:
        ax.annotate(point.label, (point.x, point.y), xytext=(6, 5), textcoords="offset points")
    positive = [point.y for point in points if point.y > 0]
    if len(positive) == len(points) and max(positive) > 5 * min(positive):
        ax.set_yscale("log")
    ax.set(xlabel=f"size, {unit}", ylabel="mean KL divergence, nats")
    ax.margins(0.14)  # room for the labels
    return ax


def plot_codes(q: QuantizedTensor, w: Any, *, bins: int = 120, ax: Axes | None = None) -> Axes:
    """Histograms of weights and of what they were rounded to.

    Parameters
    ----------
    q : QuantizedTensor
    w : array_like, of the same shape
        What was quantized: NumPy, ml_dtypes or any object with ``__dlpack__``.
    bins : int
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    phiquant.UnsupportedError
        matplotlib is not installed.
    phiquant.ShapeError
        Shapes differ.
    """
    weights = np.asarray(w, np.float32) if isinstance(w, np.ndarray) else as_float32(w)
    if weights.shape != q.shape:
        raise ShapeError(f"w has the shape {weights.shape}, and this tensor {q.shape}")
    ax = _axes(ax)
    limit = float(np.quantile(np.abs(weights), 0.999)) or 1.0
    edges = np.linspace(-limit, limit, bins + 1)
    heights, _, _ = ax.hist(
        weights.reshape(-1), edges.tolist(), color="tab:blue", alpha=0.4, label="weights"
    )
    ax.hist(
        q.dequantize().reshape(-1), edges.tolist(),
        histtype="step", color="black", linewidth=0.8, label=q.codec.name,
    )  # fmt: skip
    ax.set(xlabel="value", ylabel="weights", title=f"{q.codec.name}: error {q.error(w):.3%}")
    # Levels that many weights share would make the weights' own distribution flat.
    ax.set_ylim(0, 1.8 * float(np.max(heights)))
    ax.legend(frameon=False)
    return ax


def _axes(ax: Axes | None, width: float = 6.4) -> Any:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise UnsupportedError(
            "plots need matplotlib, which is not installed",
            remedy="pip install 'phiquant[plots]'",
        ) from error
    return pyplot.subplots(figsize=(width, 4.0), layout="constrained")[1]
