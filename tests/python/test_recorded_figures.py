"""Tables of measured figures in the docs are what their command recorded, for targets that there are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from phiquant.targets.names import PRESETS, parse_target

ROOT = Path(__file__).parents[2]


def command() -> Any:
    path = ROOT / "tests" / "benchmarks" / "divergence.py"
    spec = importlib.util.spec_from_file_location("divergence", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", PRESETS)
def test_a_page_shows_what_was_recorded(kind: str) -> None:
    divergence = command()
    text = divergence.page(kind).read_text()
    assert all(mark in text for mark in divergence.marks(kind))
    record = divergence.recorded()
    assert divergence.written(kind, record, text) == text, "run divergence.py --write"


def test_the_record_names_machine_and_day_and_targets_that_there_are() -> None:
    record = command().recorded()
    assert record["machine"] and record["made"] and record["positions"] == 2048
    for row in record["rows"]:
        assert str(parse_target(row["target"])).startswith(row["target"].partition(",")[0])
        # A divergence is nothing or more; its errors of rounding are far below what is shown.
        assert row["divergence"] > -1e-6 and 0 <= row["same_top"] <= 1


def test_the_search_is_never_worse_on_any_matrix() -> None:
    rows = [row for row in command().recorded()["rows"] if row["quality"] == "best"]
    assert rows and all(row["squared_error_worst"] <= 1 for row in rows)
