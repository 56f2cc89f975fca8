"""The notebooks run from first to last, and what is stored in them is what somebody saw."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Paths of somebody's machine.
PRIVATE = re.compile(r"/(home|root|tmp|work|Users|var|opt)/")

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="transformers 5 and ipykernel 7 need Python 3.11"
)


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return found


def texts(outputs: list[Any]) -> list[str]:
    found = []
    for output in outputs:
        text = output.get("text", output.get("data", {}).get("text/plain", ""))
        found.append(text if isinstance(text, str) else "".join(text))
    return found


def test_there_are_three() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_whole_small_and_private_to_nobody(path: Path) -> None:
    assert path.stat().st_size < 400_000
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    pictures = 0
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output
            picture = output.get("data", {}).get("image/png")
            if picture:
                assert base64.b64decode(picture).startswith(b"\x89PNG")
                pictures += 1
        for text in texts(cell["outputs"]):
            assert not PRIVATE.search(text), text
            assert "not verified" not in text and "not installed" not in text, text
    assert pictures >= 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# jupyter_client says that a kernel on this machine's loopback is not encrypted.
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs(path: Path) -> None:
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    stored = [texts(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    # Raises with the cell and its traceback when one fails.
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": path.parent}},
    ).execute()
    ran = [texts(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    if path.name.startswith("01"):  # codecs give the same bits everywhere
        assert ran == stored
