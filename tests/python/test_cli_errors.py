"""What goes wrong is told in one line with where, why and what to do, and has its exit code."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Protocol

import pytest
from cli_process import phiquant

import phiquant as pq
from phiquant.cli.entry import run
from phiquant.texts import printable

DATA = Path(__file__).parents[1] / "data"
PHI3WIN = DATA / "phi3win"


class Refusal(Protocol):
    """The one line on stderr of a command that ends with ``code``."""

    def __call__(self, *args: object, code: int, cwd: Path | None = None) -> str: ...


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Runs in this process; the same with ``--json`` gives an object on stdout with the same words."""
    monkeypatch.delenv("PHIQUANT_DEBUG", raising=False)

    def refuse(*args: object, code: int, cwd: Path | None = None) -> str:
        if cwd is not None:
            monkeypatch.chdir(cwd)
        words = list(map(str, args))
        assert run(words) == code
        shown = capsys.readouterr()
        assert shown.out == ""
        (line,) = shown.err.splitlines()
        assert line.startswith("phiquant: ")
        assert run([*words, "--json"]) == code
        (record,) = capsys.readouterr().out.splitlines()
        error = json.loads(record)
        assert f"phiquant: {printable(error['message'])}" == line
        assert error["error"]
        assert error["exit_code"] == code
        return line

    return refuse


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["convret", "x"], ["no command 'convret'", "Did you mean convert"]),
        ([str(DATA)], [f"Did you mean 'phiquant convert {DATA}'?"]),
        (["zzz"], ["no command 'zzz'", "'phiquant --help' lists them"]),
        (["convert"], ["SRC is missing", "'phiquant convert --help'"]),
        (["convert", "x"], ["no target was given", "--to q4_k_m"]),
        (["convert", "x", "--too", "q8_0"], ["no option '--too'", "--to"]),
        (["plan", "x", "--ouput-type", "q8_0"], ["Did you mean --output-type"]),
        (["inspect", "x", "-json"], ["Did you mean --json?"]),
        (["convert", "x", "--gird", "portable"], ["no option '--gird'"]),
        (["convert", "x", "--to", "q8_0", "q4_0"], ["(q4_0)", "Write --to before each target"]),
        (["convert", "x", "--to", "q4_k_x"], ["no target 'q4_k_x'", "Did you mean", "q4_k_m"]),
        (["convert", "x", "--to", "hf:nvfp5"], ["no preset 'nvfp5'", "hf:nvfp4"]),
        (["convert", "x", "--to", "q8_0", "--threads", "0"], ["--threads: 0 is not in"]),
        (["convert", "x", "--to", "q8_0", "--threads", "two"], ["--threads: 'two'"]),
        (["convert", "x", "--to", "q8_0", "--mix", "old"], ["--mix: 'old'", "published"]),
        (["convert", "x", "--to", "q8_0", "--tensor", "a"], ["'a'", "Write GLOB=CODEC"]),
        (["convert", "x", "--to", "q8_0", "--tensor", "a=q9"], ["q9"]),
        (["convert", "x", "--to", "q8_0", "--output-type", "q9"], ["q9"]),
        (["convert", str(PHI3WIN), "--to", "q8_0", "--tensor", "nil*=f16"], ["'nil*'", "inspect"]),
        (["convert", str(PHI3WIN), "--to", "q8_0", "--to", "Q8_0"], ["two of the targets"]),
        (["formats", "x"], ["unexpected extra argument"]),
        (["doctor", "--threads"], ["no option '--threads'"]),
    ],
)
def test_usage_errors_have_code_2_and_a_remedy(
    refusal: Refusal, args: list[str], words: list[str]
) -> None:
    line = refusal(*args, code=2)
    for word in words:
        assert word in line


def test_best_quality_of_a_codec_without_it_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    # Rows that do not divide into super-blocks make the output matrix q8_0.
    line = refusal("convert", PHI3WIN, "--to", "q4_k_m", "--quality", "best", code=3, cwd=tmp_path)
    assert "tensor 'lm_head.weight': quality=\"best\" is not to be had for q8_0" in line
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    target.write_text("mine")
    for command in (["convert"], ["plan"], ["convert", "--dry-run"]):
        told = phiquant(*command, PHI3WIN, "--to", "q8_0", "-o", target)
        assert told.returncode == 2
        assert f"{target}: exists already" in told.stderr
        assert "--overwrite" in told.stderr
    assert target.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_the_source_is_never_the_output(refusal: Refusal, tmp_path: Path) -> None:
    source = tmp_path / "x.safetensors"
    model = tmp_path / "model"
    shutil.copytree(PHI3WIN, model)
    source.symlink_to(model / "model.safetensors")
    for out in (model / "model.safetensors", source):
        line = refusal("convert", model, "--to", "q8_0", "-o", out, "--overwrite", code=2)
        assert "is the source itself" in line
    assert (model / "model.safetensors").read_bytes() == (
        PHI3WIN / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("missing/x.gguf", ["folder does not exist", "mkdir -p"]),
        ("file/x.gguf", ["file/x.gguf"]),
        ("/proc/x.gguf", ["/proc/x.gguf"]),
        ("ф" * 126 + ".gguf", ["257 bytes", "255"]),
        ("x" * 256, ["256 bytes", "255"]),
    ],
)
def test_outputs_that_cannot_be_written_have_code_4(
    refusal: Refusal, tmp_path: Path, out: str, words: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    line = refusal("convert", PHI3WIN, "--to", "q8_0", "-o", out, code=4, cwd=tmp_path)
    for word in words:
        assert word in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_source_that_is_not_there(refusal: Refusal, tmp_path: Path) -> None:
    for command in ("convert", "plan"):
        line = refusal(command, "nowhere.gguf", "--to", "q8_0", code=4, cwd=tmp_path)
        assert "nowhere.gguf: does not exist" in line
    assert "does not exist" in refusal("inspect", tmp_path / "x", code=4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy to be damaged."""
    folder = tmp_path / "model"
    shutil.copytree(PHI3WIN, folder)
    return folder


def test_nan_is_found_with_file_tensor_and_place(
    refusal: Refusal, model: Path, tmp_path: Path
) -> None:
    file = model / "model.safetensors"
    entry = pq.open(model).entries["model.layers.1.mlp.down_proj.weight"]
    with file.open("r+b") as stream:
        stream.seek(entry.offset + 2 * (640 * 5 + 7))
        stream.write(struct.pack("<H", 0x7FC0))
    before = sorted(path.name for path in tmp_path.iterdir())
    line = refusal("convert", model, "--to", "q8_0", code=3, cwd=tmp_path)
    assert str(file) in line
    assert "'model.layers.1.mlp.down_proj.weight'" in line
    assert "NaN" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_truncated_shard(refusal: Refusal, model: Path) -> None:
    file = model / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    for args in (["convert", model, "--to", "q8_0"], ["inspect", model]):
        assert str(file) in refusal(*args, code=3)


def test_another_architecture(refusal: Refusal, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"architectures": ["PhiMoEForCausalLM"]})
    )
    line = refusal("convert", model, "--to", "q8_0", code=3)
    assert "config.json" in line
    assert "PhiMoEForCausalLM" in line
    assert "Supported is Phi3ForCausalLM" in line


def test_a_folder_without_weights(refusal: Refusal, tmp_path: Path) -> None:
    assert "holds no safetensors" in refusal("inspect", tmp_path, code=3)


def test_instruction_sets_that_the_machine_lacks(tmp_path: Path) -> None:
    done = phiquant("convert", PHI3WIN, "--to", "q8_0", cwd=tmp_path, PHIQUANT_ARCH="avx1024")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("phiquant: ")
    assert "avx1024" in line
    assert list(tmp_path.iterdir()) == []


def test_names_from_files_do_not_command_the_terminal(refusal: Refusal, tmp_path: Path) -> None:
    line = refusal("inspect", "\x1b]0;title\x07\nphiquant: fine", code=4, cwd=tmp_path)
    assert "\x1b" not in line
    assert "\\x1b]0;title" in line


def test_a_full_disk_behind_stdout_is_an_error() -> None:
    with Path("/dev/full").open("wb") as full:
        done = phiquant("formats", stdout=full.fileno())
    assert done.returncode == 4
    assert done.stderr == "phiquant: standard output cannot be written: No space left on device\n"


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = phiquant("inspect", PHI3WIN, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bug_is_one_line_and_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the moon is full")

    monkeypatch.setattr(pq, "plan", broken)
    monkeypatch.delenv("PHIQUANT_DEBUG", raising=False)
    assert run(["plan", "x", "--to", "q8_0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("phiquant: RuntimeError: the moon is full. That is a bug in phiquant")
    assert "PHIQUANT_DEBUG=1" in line
    monkeypatch.setenv("PHIQUANT_DEBUG", "1")
    assert run(["plan", "x", "--to", "q8_0", "--json"]) == 1
    shown = capsys.readouterr()
    assert "Traceback" in shown.err
    assert json.loads(shown.out)["error"] == "InternalError"


def test_an_error_of_the_system_that_nobody_foresaw_has_code_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "/x/config.json")

    monkeypatch.setattr(pq, "plan", broken)
    assert run(["plan", "x", "--to", "q8_0"]) == 4
    assert capsys.readouterr().err == "phiquant: /x/config.json: Permission denied\n"
