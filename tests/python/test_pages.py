"""Pages say what the report says, read what the files hold, and let no name break out of its text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import phiquant

import phiquant as pq
from phiquant.evaluate import Evaluation, compare, evaluate
from phiquant.pages.file import check_page, write_page
from phiquant.pages.markup import tag
from phiquant.pages.modules import Place, place_of, short_modules
from phiquant.pages.samples import Pair
from phiquant.pages.scales import Axis, percent
from phiquant.pages.scatter import Point, front, short_labels
from phiquant.report import Report
from places import DATA

SOURCE = DATA / "phi35"
TARGETS = ["q4_k_m", "onnx:int4", "openvino:int4", "mlx:4bit", "hf:w4a16"]
HOSTILE = (
    "</style></title></svg><script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "blk.0.'><svg onload=alert(1)>.weight",
    "model.layers.1.\u202egnp.\x1b[31m\ud800\0.weight",
    "&lt;b&gt;" + "x" * 300,
)
# Elements without an end tag.
VOID = {"link", "meta", "wbr"}


class Page(HTMLParser):
    """Elements with their attributes and texts; a page that is not well-formed fails."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[int, str] = {}
        self._open: list[tuple[str, int]] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self._open.append((tag, len(self.elements)))
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, index in self._open:
            self.texts[index] = self.texts.get(index, "") + data

    def cells(self) -> dict[tuple[int | None, str], str]:
        """Texts of the heat map's cells by layer and module."""
        found = {}
        for index, (_, attributes) in enumerate(self.elements):
            if "pq-cell" in (attributes.get("class") or "").split():
                layer = attributes.get("data-layer")
                key = (None if layer is None else int(layer), attributes["data-module"])
                assert key not in found
                found[key] = self.texts[index]
        return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return pq.convert(SOURCE, TARGETS, tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def evaluation(report: Report) -> Evaluation:
    return evaluate(
        list(report.results), SOURCE, context=64, tokens=128, repetition=0, threads=1, cache=False
    )


def one_target(report: Report, index: int) -> Report:
    target = list(dict.fromkeys(file.target for file in report.files))[index]
    files = tuple(file for file in report.files if file.target == target)
    return replace(report, files=files, hints=(report.hints[index],))


@pytest.mark.parametrize("index", range(len(TARGETS)), ids=TARGETS)
def test_the_heat_map_has_a_cell_with_the_error_of_every_matrix(report: Report, index: int) -> None:
    one = one_target(report, index)
    cells = Page(one.to_html(samples=0)).cells()
    expected: dict[tuple[int | None, str], list[float]] = {}
    lossy = set()
    for tensor in (tensor for file in one.files for tensor in file.tensors):
        if tensor.source and tensor.weights and len(tensor.shape) > 1:
            found = re.match(r"model\.layers\.(\d+)\.(.*)\.weight$", tensor.source)
            key = (
                (int(found[1]), found[2])
                if found
                else (None, re.sub(r"^model\.|\.weight$", "", tensor.source))
            )
            expected.setdefault(key, []).append(tensor.relative_error)
            if tensor.relative_error:
                lossy.add(key[1])
    expected = {key: errors for key, errors in expected.items() if key[1] in lossy}
    assert len([key for key in cells if key[0] is not None]) == 6 * 4
    assert set(cells) == set(expected)
    for key, errors in expected.items():
        shown = float(re.search(r"[\d.]+$", cells[key])[0])  # type: ignore[index]
        # Parts of one matrix (gate and up) share a cell: it lies between them.
        assert 100 * min(errors) - 0.051 <= shown <= 100 * max(errors) + 0.051


def test_estimated_errors_are_near_those_of_all_weights(report: Report) -> None:
    for path in report.results:
        exact = {t.a: t.relative_error for t in compare(SOURCE, path).tensors}
        for tensor in Pair(SOURCE, path).tensors():
            if tensor.source:
                # Some tens of thousands of weights; a tenth is far above their scatter.
                assert tensor.relative_error == pytest.approx(exact[tensor.source], rel=0.1)


def test_samples_hold_the_rows_of_source_and_result(report: Report) -> None:
    source = pq.open(SOURCE)
    for path in report.results:
        pair, result = Pair(source, path), pq.open(path)
        samples = pair.samples(4)
        assert len(samples) == 4 or len({s.codec for s in samples}) >= 1
        for sample in samples:
            whole = np.asarray(source[sample.name], np.float32)
            mine = sample.weights.reshape(-1, whole.shape[1])
            rows = [int(np.flatnonzero((whole == row).all(1))[0]) for row in mine]
            assert rows == sorted(rows) and len(set(rows)) == len(rows)
            decoded = result[pair.names[sample.name]].dequantize()[rows]
            np.testing.assert_array_equal(sample.decoded.reshape(mine.shape), decoded)
            joined = sample.group_decoded
            assert np.unique(joined).size <= 64 and joined.size == sample.group_weights.size


def test_a_page_shows_sizes_times_and_commands(report: Report) -> None:
    page = report.to_html()
    read = Page(page)
    text = read.texts[0]
    for target in {file.target for file in report.files}:
        assert target in text
    for hint in report.hints:
        assert hint in text
    assert f"{report.seconds:.2f} s" in text
    assert f"{report.seconds_encoding:.2f} s" in text
    svgs = [attributes for name, attributes in read.elements if name == "svg"]
    assert len(svgs) == 2 + sum(len(Pair(SOURCE, p).samples(6)) for p in report.results)
    for file in report.files:
        for tensor in file.tensors:
            assert tensor.crc32c in page


def test_pages_ask_for_nothing_and_run_nothing(report: Report, evaluation: Evaluation) -> None:
    for page in (report.to_html(), evaluation.to_html()):
        for name, attributes in Page(page).elements:
            assert name not in ("script", "iframe", "object", "embed", "img", "base", "form")
            assert not [key for key in attributes if key.startswith("on")]
            for key in ("src", "href", "xlink:href", "action"):
                assert attributes.get(key, "#").startswith(("#", "data:,"))
        assert "@import" not in page and "url(" not in page
        assert "default-src &#x27;none&#x27;" in page


def test_names_stay_text(report: Report) -> None:
    one = one_target(report, 0)
    (file,) = one.files
    tensors = [
        replace(t, name=name, source=name, codec=name, shape=(2, 32), relative_error=0.1)
        for t, name in zip(file.tensors, HOSTILE, strict=False)
    ]
    hostile = replace(
        one,
        source=HOSTILE[0],
        notes=HOSTILE,
        hints=(HOSTILE[1],),
        files=(replace(file, tensors=tuple(tensors), target=HOSTILE[0], result=HOSTILE[1]),),
    )
    known = {name for name, _ in Page(one.to_html()).elements} | {"ul", "li", "h4"}
    for page in (hostile.to_html(), hostile._repr_html_()):
        page.encode()  # no lone surrogate is left
        assert {name for name, _ in Page(page).elements} <= known
        assert not set(page) & {"\x1b", "\0", "\u202e"}
        assert "\\u202e" in page and "&lt;script&gt;" in page


def test_names_of_a_file_stay_text(tmp_path: Path) -> None:
    names = [name for name in HOSTILE if "\ud800" not in name and len(name) < 64]
    path = tmp_path / "<b>.gguf"
    pq.gguf.write(path, {name: np.ones(32, np.float32) for name in names})
    shown = pq.open(path)._repr_html_()
    assert "<script>" not in shown and "<b>.gguf" not in shown and "<svg" not in shown
    assert len(names) >= 2


def test_numbers_in_names_need_not_be_layers() -> None:
    assert place_of("blk.12.attn_qkv.weight") == Place(12, "attn_qkv")
    assert place_of("model.layers.0.mlp.down_proj.weight") == Place(0, "mlp.down_proj")
    assert place_of("model.embed_tokens.weight") == Place(None, "embed_tokens")
    assert place_of("other.3.w") != place_of("blk.3.w")
    assert place_of("x." + "9" * 5000 + ".w").layer is None
    assert short_modules(["a.b.c", "d.b.c", "e"]) == {"a.b.c": "a.b.c", "d.b.c": "d.b.c", "e": "e"}


def test_the_front_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        points = [Point("", *map(float, xy), 0, "") for xy in rng.integers(0, 6, (9, 2))]
        best = {(p.x, p.y) for p in front(points)}
        for point in points:
            beaten = any(
                q.x <= point.x and q.y <= point.y and (q.x, q.y) != (point.x, point.y)
                for q in points
            )
            assert ((point.x, point.y) in best) == (not beaten)


def test_axes_have_round_ticks_within_them() -> None:
    assert Axis(0, 10, 0, 1).ticks(5) == [0, 2, 4, 6, 8, 10]
    assert Axis(1e-5, 0.1, 0, 1, logarithmic=True).ticks(0) == pytest.approx(
        [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    )
    assert Axis(2, 2, 0, 1).ticks(5) == [2]
    assert Axis(1, 100, 0, 300, logarithmic=True).place(10) == pytest.approx(150)
    assert [percent(x) for x in (0, 0.0718, 0.00542, 1.5)] == ["0 %", "7.18 %", "0.542 %", "150 %"]


def test_labels_leave_out_what_all_have_in_common() -> None:
    assert short_labels(["out/phi-q4_k_m.gguf", "out/phi-q8_0.gguf"]) == ["q4_k_m", "q8_0"]
    assert short_labels(["a/x.gguf"]) == ["x"]
    assert short_labels(["a/x", "b/x"]) == ["a/x", "b/x"]


def test_an_evaluation_shows_every_model(evaluation: Evaluation) -> None:
    page = Page(evaluation.to_html())
    for score in evaluation.scores:
        assert f"{score.mean_kld:.5f}" in page.texts[0]
        assert sum(score.model in text for text in page.texts.values()) > 0
    alone = replace(evaluation, scores=evaluation.scores[:1])
    assert "pq-hit" not in re.sub("<style>.*</style>", "", alone.to_html(samples=0), flags=re.S)
    points = [a for n, a in page.elements if n == "circle" and "pq-hit" in a.get("class", "")]
    assert len(points) == 2 * len(evaluation.scores)  # for desktops and for phones


def test_what_has_moved_is_named(report: Report, evaluation: Evaluation) -> None:
    gone = replace(report, source="/nowhere/phi")
    assert "/nowhere/phi: does not exist" in Page(gone.to_html()).texts[0]
    lost = replace(evaluation, scores=(replace(evaluation.scores[0], model="/nowhere/x.gguf"),))
    assert "/nowhere/x.gguf: does not exist" in Page(lost.to_html()).texts[0]


def test_notebooks_get_tensors_checkpoints_and_results(
    report: Report, evaluation: Evaluation
) -> None:
    w = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)
    for codec in ("q4_k", "q8_0", "int4_asym_g64", "bf16", "tq1_0"):
        shown = Page(pq.quantize(w, codec)._repr_html_())
        assert "64 × 512" in shown.texts[0] and codec in shown.texts[0]
        assert [a for n, a in shown.elements if n == "path"]
    empty = pq.quantize(np.zeros((1, 256), np.float32), "q4_k")
    assert Page(empty._repr_html_()).texts
    for path in (SOURCE, *report.results):
        text = Page(pq.open(path)._repr_html_()).texts[0]
        assert "6 layers of 256" in text and "qkv" in text
    assert len(Page(report._repr_html_()).elements) > 5 * 24
    assert Page(evaluation._repr_html_()).texts
    assert Page(pq.plan(SOURCE, to="q4_k_m")._repr_html_()).texts


def test_no_file_but_a_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(page, "<!doctype html>\none")
    write_page(page, "<!doctype html>\ntwo")
    assert page.read_text().endswith("two")
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    for path, error in (
        (model, pq.UsageError),
        (tmp_path, pq.UsageError),
        (tmp_path / "no" / "page.html", pq.IoError),
    ):
        with pytest.raises(error):
            check_page(path)
        with pytest.raises(error):
            write_page(path, "<!doctype html>")
    assert model.read_bytes() == b"GGUF"
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "model.gguf"}


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "<b>", tag("i", "&"), class_='"') == (
        '<p class="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    )


def test_commands_write_pages(tmp_path: Path) -> None:
    done = phiquant(
        "convert", SOURCE, "--to", "q8_0", "-o", "m.gguf", "--html", "r.html", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "m.gguf\n"
    assert Page((tmp_path / "r.html").read_text()).cells()
    done = phiquant(
        *("eval", "m.gguf", "--against", SOURCE, "--context", 64, "--tokens", 64),
        *("--repetition", 0, "--html", "e.html", "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert Page((tmp_path / "e.html").read_text()).cells()
    before = (tmp_path / "m.gguf").read_bytes()
    done = phiquant("eval", "m.gguf", "--against", SOURCE, "--html", "m.gguf", cwd=tmp_path)
    assert done.returncode == 2 and "is no HTML page" in done.stderr
    done = phiquant("convert", SOURCE, "--to", "q8_0", "--dry-run", "--html", "x", cwd=tmp_path)
    assert done.returncode == 2 and "--dry-run" in done.stderr
    assert (tmp_path / "m.gguf").read_bytes() == before
