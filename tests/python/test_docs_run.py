"""The Python in README and docs runs as it stands, and the README's numbers of presets and codecs are the program's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from places import PRESETS

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: p.name
)
def test_python_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "out").mkdir()
    names: dict[str, object] = {}
    for code in BLOCK.findall(page.read_text()):
        exec(compile(code, str(page), "exec"), names)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_lists_the_presets_that_there_are():
    from phiquant.targets.names import GGUF_PRESETS

    assert set(PRESETS) <= set(GGUF_PRESETS)
    text = (ROOT / "README.md").read_text()
    for preset in GGUF_PRESETS:
        assert preset in text, preset


def test_the_guide_quotes_the_measured_tables():
    docs = ROOT / "docs"
    guide, sizes = (docs / "choosing.md").read_text(), (docs / "cli.md").read_text()
    measured = (docs / "evaluation.md").read_text()
    fixtures = [
        measured[measured.index(f"`{name}`: perplexity") :] for name in ("phi35", "phi4mini")
    ]
    rows = re.findall(
        r"^\| (\w+)( \(importance\))? \| ([\d.]+ GB) \| (.*) \|$", guide, re.MULTILINE
    )
    assert len(rows) >= 10
    for preset, importance, size, figures in rows:
        assert re.search(rf"^  gguf:{preset} +[\d.]+ +{size} ", sizes, re.MULTILINE), preset
        found: list[str] = []
        for table in fixtures:
            cells = re.search(rf"^\| {preset}{re.escape(importance)} \|(.*)", table, re.MULTILINE)
            assert cells, preset
            _, _, divergence, _, _, same_top, *_ = cells[1].split("|")
            found += [divergence.partition("±")[0].strip(), same_top.strip()]
        assert figures.split(" | ") == found, preset


def test_targets_that_the_guide_names_exist():
    from phiquant.targets.names import PRESETS, parse_target

    text = (ROOT / "docs" / "choosing.md").read_text()
    named = re.findall(rf"`((?:{'|'.join(PRESETS)}):[^`]+)`", text)
    assert len(set(named)) >= 30
    for target in named:
        parse_target(target)


def test_the_reference_has_every_public_name():
    import phiquant

    reference = (ROOT / "docs" / "api.md").read_text()
    for name in phiquant.__all__:
        value = getattr(phiquant, name)
        if callable(value):
            assert re.search(rf"^\.\. auto\w+:: phiquant\.{name}$", reference, re.MULTILINE), name


def test_every_page_is_in_the_index():
    docs = ROOT / "docs"
    index = (docs / "index.md").read_text()
    listed = "\n".join(re.findall(r"^```\{toctree\}\n(.*?)^```", index, re.MULTILINE | re.DOTALL))
    for page in sorted(docs.rglob("*.md")):
        name = page.relative_to(docs).with_suffix("").as_posix()
        folder = f"{name.rpartition('/')[0]}/*"
        assert name == "index" or {name, folder} & set(listed.split("\n")), f"{name} is in no list"
