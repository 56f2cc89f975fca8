"""What every target refuses alike: weights that no format holds, and places that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import phiquant as pq
from tiny_model import config_of, weights_of, write_model

FOLDERS = ["onnx:int4", "openvino:int4_sym", "mlx:4bit", "hf:w4a16"]
TARGETS = [*FOLDERS, "onnx:fp16", "onnx:int8", "openvino:int8", "mlx:bf16", "hf:w8a8", "hf:fp8"]
UP = "model.layers.0.mlp.gate_up_proj.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("sound") / "model")


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("value", [np.nan, -np.inf], ids=str)
def test_row_33_a_value_that_is_not_finite_is_named_whatever_the_target(
    to: str, value: float, tmp_path: Path
) -> None:
    weights = weights_of(config_of())
    weights[UP][300, 77] = value
    model = write_model(tmp_path / "model", weights)
    (tmp_path / "out").mkdir()
    with pytest.raises(pq.ValueRangeError, match=r"\[300, 77\]") as caught:
        pq.convert(model, to, tmp_path / "out" / "x")
    assert caught.value.tensor == UP
    assert caught.value.exit_code == 3
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("to", TARGETS)
def test_row_34_weights_of_zeros_convert(to: str, tmp_path: Path) -> None:
    weights = {name: np.zeros_like(array) for name, array in weights_of(config_of()).items()}
    model = write_model(tmp_path / "model", weights)
    done = pq.convert(model, to, tmp_path / "x")
    if not to.startswith("onnx:int8"):
        opened = pq.open(done.path)
        values = opened[next(name for name in opened if "down_proj" in name or "ffn_down" in name)]
        values = values.dequantize() if isinstance(values, pq.QuantizedTensor) else values
        assert not np.asarray(values).astype(np.float32).any()


@pytest.mark.parametrize("to", FOLDERS)
def test_row_45_a_folder_that_exists_stays_as_it_is(to: str, sound: Path, tmp_path: Path) -> None:
    there = tmp_path / "x"
    there.mkdir()
    (there / "mine").write_text("mine")
    for overwrite in (False, True):
        # Not even to be overwritten: it holds a file that is none of the result's.
        with pytest.raises(pq.PhiquantError) as caught:
            pq.convert(sound, to, there, overwrite=overwrite)
        assert caught.value.exit_code in (2, 4)
        assert [path.name for path in tmp_path.rglob("*")] == ["x", "mine"]


@pytest.mark.parametrize("to", FOLDERS)
def test_row_46_the_source_as_the_folder(to: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    before = {path: path.read_bytes() for path in model.iterdir()}
    for overwrite in (False, True):
        with pytest.raises(pq.PhiquantError) as caught:
            pq.convert(model, to, model, overwrite=overwrite)
        assert caught.value.exit_code in (2, 4)
    assert {path: path.read_bytes() for path in model.iterdir()} == before
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize("to", FOLDERS)
def test_row_47_names_of_folders(to: str, sound: Path, tmp_path: Path) -> None:
    for name in ("a" * 256, "missing/x"):
        with pytest.raises(pq.IoError) as caught:
            pq.convert(sound, to, tmp_path / name)
        assert caught.value.exit_code == 4
    with pytest.raises(pq.UsageError):
        pq.convert(sound, to, tmp_path / "a\0b")
    assert list(tmp_path.iterdir()) == []
    pq.convert(sound, to, tmp_path / "φ \U0001f642")
    assert [path.name for path in tmp_path.iterdir()] == ["φ \U0001f642"]
