"""Where results may stand, and what a result never replaces; and instruction sets by name."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import phiquant as pq
from tiny_model import FIXTURE, config_of, safetensors_bytes, weights_of, write_model

UP = "model.layers.0.mlp.gate_up_proj.weight"


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where results would go."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder


# Rows 45 to 47: the output's name.
@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> pq.Plan:
    return pq.plan(write_model(tmp_path_factory.mktemp("sound") / "model"), "q8_0")


def test_row_45_a_target_that_exists_stays_as_it_is(plan: pq.Plan, out: Path) -> None:
    path = out / "x.gguf"
    path.write_text("mine")
    with pytest.raises(pq.UsageError, match="exists already") as caught:
        plan.run(path)
    assert caught.value.exit_code == 2
    assert "overwrite" in str(caught.value)
    assert path.read_text() == "mine"
    plan.run(path, overwrite=True)
    assert path.read_bytes()[:4] == b"GGUF"
    assert [p.name for p in out.iterdir()] == ["x.gguf"]


def test_row_45_a_target_that_is_a_link_to_nowhere_exists(plan: pq.Plan, out: Path) -> None:
    (out / "x.gguf").symlink_to(out / "elsewhere")
    with pytest.raises(pq.UsageError, match="exists already"):
        plan.run(out / "x.gguf")
    assert not (out / "elsewhere").exists()


def test_row_45_an_overwritten_link_is_replaced_and_its_file_stays(
    plan: pq.Plan, out: Path
) -> None:
    (out / "file").write_text("mine")
    (out / "x.gguf").symlink_to("file")
    plan.run(out / "x.gguf", overwrite=True)
    assert (out / "file").read_text() == "mine"
    assert not (out / "x.gguf").is_symlink()
    assert sorted(p.name for p in out.iterdir()) == ["file", "x.gguf"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_row_45_a_target_that_is_a_folder(overwrite: bool, plan: pq.Plan, out: Path) -> None:
    place = out / plan.targets[0].name
    place.mkdir()
    with pytest.raises(pq.UsageError, match="folder"):
        plan.run(out, overwrite=overwrite)
    assert list(place.iterdir()) == []


def test_row_46_the_source_as_the_target(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    shard = model / "model.safetensors"
    data = shard.read_bytes()
    (tmp_path / "link").symlink_to(shard)
    os.link(shard, tmp_path / "hard")
    for name in (shard, tmp_path / "link", model / ".." / "model" / "model.safetensors"):
        with pytest.raises(pq.UsageError, match="source itself"):
            pq.convert(model, "q8_0", name, overwrite=True)
    assert shard.read_bytes() == data
    # A second name of the source is replaced as a name: the source stays.
    pq.convert(model, "q8_0", tmp_path / "hard", overwrite=True)
    assert shard.read_bytes() == data


def test_row_46_a_gguf_onto_itself(plan: pq.Plan, out: Path) -> None:
    path = Path(plan.run(out).path)
    data = path.read_bytes()
    with pytest.raises(pq.UsageError, match="source itself"):
        pq.convert(path, "q4_k_m", path, requantize=True, overwrite=True)
    assert path.read_bytes() == data


def test_row_47_a_folder_that_is_missing(plan: pq.Plan, out: Path) -> None:
    with pytest.raises(pq.IoError, match="mkdir -p") as caught:
        plan.run(out / "absent" / "x.gguf")
    assert caught.value.exit_code == 4
    assert list(out.iterdir()) == []


def test_row_47_a_folder_that_is_read_only(plan: pq.Plan, out: Path) -> None:
    if os.geteuid() == 0:
        # Root may write everywhere but where nobody may.
        with pytest.raises(pq.IoError) as caught:
            plan.run("/proc/x.gguf")
        assert caught.value.exit_code == 4
        return
    out.chmod(0o500)
    with pytest.raises(pq.IoError, match="permissions") as caught:
        plan.run(out / "x.gguf")
    out.chmod(0o700)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["a" * 255, "b" * 250 + ".gguf", "\U0001f680 ünï.gguf", "é" * 127, b"\xff\xfe.gguf", "-x.gguf"],
    ids=ascii,
)
def test_row_47_names_that_the_file_system_takes(
    name: str | bytes, plan: pq.Plan, out: Path
) -> None:
    report = plan.run(out / os.fsdecode(name))
    assert Path(report.path).name == os.fsdecode(name)
    assert [path.name for path in out.iterdir()] == [os.fsdecode(name)]
    plan.run(out / os.fsdecode(name), overwrite=True)
    assert [path.name for path in out.iterdir()] == [os.fsdecode(name)]


@pytest.mark.parametrize("name", ["a" * 256, "é" * 128, "x" * 5000], ids=len)
def test_row_47_names_that_are_too_long(name: str, plan: pq.Plan, out: Path) -> None:
    with pytest.raises(pq.IoError, match="shorter") as caught:
        plan.run(out / name)
    assert caught.value.exit_code == 4
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["a\0b", "\ud800"], ids=ascii)
def test_row_47_names_that_are_no_names(name: str, plan: pq.Plan, out: Path) -> None:
    with pytest.raises(pq.UsageError) as caught:
        plan.run(out / name)
    assert caught.value.exit_code == 2
    assert list(out.iterdir()) == []


def test_a_checkpoint_in_a_folder_whose_name_is_not_utf_8(tmp_path: Path, out: Path) -> None:
    model = write_model(tmp_path / os.fsdecode(b"mod\xffel"))
    pq.convert(model, "q8_0", out / "x.gguf")
    weights = weights_of(config_of())
    weights[UP][0, 0] = np.nan
    (model / "model.safetensors").write_bytes(safetensors_bytes(weights))
    with pytest.raises(pq.ValueRangeError, match="NaN"):
        pq.convert(model, "q8_0", out / "y.gguf")


# Row 54: an instruction set that is not there.
# Of another processor's family: never there.
FOREIGN = "neon64" if platform.machine() in ("x86_64", "AMD64") else "avx2"


@pytest.mark.parametrize("arch", [FOREIGN, "nonsense", "AVX2 "])
def test_row_54_an_instruction_set_that_is_not_there_is_an_error(
    arch: str, tmp_path: Path, out: Path
) -> None:
    script = """
import sys, phiquant as pq
try:
    pq.convert(sys.argv[1], "q8_0", sys.argv[2])
except pq.UsageError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(FIXTURE), str(out)],
        env={**os.environ, "PHIQUANT_ARCH": arch},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done
    assert arch.strip() in done.stdout
    assert "PHIQUANT_ARCH" in done.stdout
    assert list(out.iterdir()) == []
