"""Pages as a browser shows them: on desktops and phones, in light and dark, with nothing cut off."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiquant as pq
from chromium import Browser, program
from phiquant.evaluate import evaluate
from places import DATA

SOURCE = DATA / "phi35"
WIDTHS = (1280, 390)
PAGES = ("report", "evaluation", "hostile")

# What stands beyond the page's right edge, and scrolls in no box of its own.
BEYOND = """
[...document.querySelectorAll('main *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > innerWidth + 0.5 && !e.closest('.pq-scroll');
}).map(e => e.tagName + '.' + e.getAttribute('class') + ' ' + e.textContent.slice(0, 40))
"""
# The heat map's cells: place, size, and contrast of text and background (WCAG 2).
CELLS = """
(() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll('.pq-cell:not(.pq-exact)')].map(e => {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    const [one, other] = [style.color, style.backgroundColor].map(light);
    return {layer: e.dataset.layer ?? null, module: e.dataset.module, left: box.left,
      right: box.right, width: box.width, height: box.height,
      cut: e.scrollWidth > e.clientWidth + 1, size: parseFloat(style.fontSize),
      contrast: (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)};
  });
})()
"""
# Letters of pictures, as large as they are on the screen.
LETTERS = """
[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length)
  .map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("browser")
    report = pq.convert(SOURCE, ["q4_k_m", "q2_k", "mlx:4bit"], folder)
    result = evaluate(
        list(report.results), SOURCE, context=64, tokens=64, repetition=0, threads=1, cache=False
    )
    file = report.files[0]
    bad = "</title><script>document.title='owned'</script><img src=x onerror=\"document.title=1\">"
    hostile = replace(
        report,
        source=bad * 3,
        notes=(bad,),
        files=(
            replace(
                file,
                target=bad,
                tensors=tuple(
                    replace(t, name=bad + t.name, source=t.source and bad + t.source, codec=bad)
                    for t in file.tensors
                ),
            ),
        ),
        hints=(bad,),
    )
    texts = (report.to_html(), result.to_html(), hostile.to_html())
    found = {}
    for name, text in zip(PAGES, texts, strict=True):
        found[name] = folder / f"{name}.html"
        found[name].write_text(text, encoding="utf-8")
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.show(pages[name], width=width, dark=dark)
    assert browser.ask("innerWidth") == width
    assert browser.ask("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert browser.ask("document.scrollingElement.scrollWidth") <= width, browser.ask(BEYOND)
    assert browser.ask(BEYOND) == []
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]
    assert browser.ask("document.title") not in ("owned", "1")
    assert browser.ask("document.querySelectorAll('img, script').length") == 0
    assert min(browser.ask(LETTERS), default=10) >= 9.5


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_cell_of_the_heat_map_can_be_read(
    browser: Browser, pages: dict[str, Path], width: int, dark: bool
) -> None:
    browser.show(pages["report"], width=width, dark=dark)
    cells: list[dict[str, Any]] = browser.ask(CELLS)
    # Three results of six layers with four matrices, and embedding and output of each.
    assert len(cells) == 3 * (6 * 4 + 2)
    for cell in cells:
        assert cell["width"] >= 24 and cell["height"] >= 18, cell
        assert cell["left"] >= 0 and cell["right"] <= width and not cell["cut"], cell
        assert cell["size"] >= 9.5 and cell["contrast"] >= 4.5, cell
    inner = [cell for cell in cells[:24] if cell["layer"] is not None]
    by_layer = {
        cell["layer"]: cell["left"] for cell in inner if cell["module"].endswith("qkv_proj")
    }
    # Layers go to the right where there is room, and down on phones.
    assert len(set(by_layer.values())) == (6 if width > 640 else 1)


def test_forty_layers_stay_readable(browser: Browser, tmp_path: Path) -> None:
    """Phi-4 has 40 layers, the most of all."""
    report = pq.convert(SOURCE, "q4_k_m", tmp_path / "m.gguf")
    (file,) = report.files
    layer = [t for t in file.tensors if t.source and ".layers.0." in t.source]
    tensors = tuple(
        replace(t, source=t.source and t.source.replace(".0.", f".{index}."), relative_error=0.1234)
        for index in range(40)
        for t in layer
    )
    page = tmp_path / "page.html"
    page.write_text(replace(report, files=(replace(file, tensors=tensors),)).to_html(samples=0))
    for width in WIDTHS:
        browser.show(page, width=width)
        cells = browser.ask(CELLS)
        assert len(cells) == 40 * 4
        assert all(c["right"] <= width and not c["cut"] and c["size"] >= 9 for c in cells)


@pytest.mark.parametrize("name", ["report", "evaluation"])
@pytest.mark.parametrize("width", WIDTHS)
def test_there_is_something_to_see(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    pictures = []
    for dark in (False, True):
        browser.show(pages[name], width=width, dark=dark)
        pictures.append(pixels(browser.picture()))
    light, night = pictures
    assert light.shape == night.shape and light.shape[1] == width
    for picture, ground in ((light, 251), (night, 17)):
        brightness = picture[::2, ::2].mean(axis=2)
        assert abs(np.median(brightness) - ground) < 12
        # Every stretch of the page, a screen high, shows more than its ground.
        for top in range(0, len(brightness) - 200, 400):
            strip = brightness[top : top + 400]
            share = float((abs(strip - np.median(strip)) > 24).mean())
            assert 0.005 < share < 0.6, (top, share)
        assert len(np.unique(picture[::7, ::7] @ (1, 256, 65536))) > 60


def test_without_a_browser_the_answer_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        program()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        program()


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    """Rows of red, green and blue."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float32)
