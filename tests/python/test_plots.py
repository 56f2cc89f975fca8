"""Plots draw the numbers of reports, evaluations and tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

import phiquant as pq
from phiquant import plots
from phiquant.evaluate import evaluate
from places import DATA

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    matplotlib.pyplot.close("all")


def drawn(ax: Any) -> np.ndarray[Any, Any]:
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())


def test_the_heat_map_holds_the_errors_of_the_report(tmp_path: Path) -> None:
    report = pq.convert(DATA / "phi35", ["q4_k_m", "mlx:4bit"], tmp_path)
    for target in ("gguf:q4_k_m", "mlx:4bit"):
        ax = plots.plot_error(report, target=target)
        (image,) = ax.images
        errors = {
            t.source: 100 * t.relative_error
            for file in report.files
            if file.target == target
            for t in file.tensors
            if t.source and t.weights and ".layers." in t.source and len(t.shape) > 1
        }
        assert image.get_array().shape == (4, 6)
        assert sorted(image.get_array().ravel()) == pytest.approx(sorted(errors.values()))
        assert ax.get_yticklabels()[0].get_text() == "qkv_proj"
        assert len(np.unique(drawn(ax))) > 20
    with pytest.raises(pq.UnsupportedError, match="gguf:q4_k_m, mlx:4bit"):
        plots.plot_error(report, target="gguf:q8_0")


def test_candidates_stand_at_their_size_and_divergence(converted: Any) -> None:
    models = [converted("phi35", preset) for preset in ("q8_0", "q4_0")]
    result = evaluate(
        models, DATA / "phi35", context=64, tokens=128, repetition=0, threads=1, cache=False
    )
    ax = plots.plot_candidates(result)
    places = ax.containers[0][0].get_xydata()
    assert places.tolist() == [[s.nbytes / 1e6, s.mean_kld] for s in result.scores]
    assert [text.get_text() for text in ax.texts] == ["q8_0", "q4_0"]
    assert "MB" in ax.get_xlabel() and len(np.unique(drawn(ax))) > 20
    both = plots.plot_candidates([result, result])
    assert len(both.texts) == 4


def test_codes_are_counted_like_weights() -> None:
    w = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)
    for codec in ("q4_0", "int4_asym_g64"):
        q = pq.quantize(w, codec)
        ax = plots.plot_codes(q, w, bins=50)
        limit = np.quantile(np.abs(w), 0.999)
        heights = np.array([patch.get_height() for patch in ax.containers[0].patches])
        assert heights.tolist() == np.histogram(w, 50, (-limit, limit))[0].tolist()
        assert len(np.unique(drawn(ax))) > 20
    with pytest.raises(pq.ShapeError):
        plots.plot_codes(q, w[:2])


def test_plots_stand_where_they_are_told_to() -> None:
    _, (one, other) = matplotlib.pyplot.subplots(1, 2)
    w = np.ones((2, 256), np.float32)
    assert plots.plot_codes(pq.quantize(w, "q8_0"), w, ax=other) is other
    assert len(matplotlib.pyplot.get_fignums()) == 1 and not one.patches


def test_without_matplotlib_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np, phiquant as pq\n"
        "from phiquant import plots\n"
        "w = np.ones((1, 256), np.float32)\n"
        "try: plots.plot_codes(pq.quantize(w, 'q8_0'), w)\n"
        "except pq.UnsupportedError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'phiquant[plots]'" in done.stdout
