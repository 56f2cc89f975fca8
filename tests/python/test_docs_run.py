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
