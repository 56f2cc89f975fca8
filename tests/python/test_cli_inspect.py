"""inspect shows any checkpoint, fits a terminal, is complete in a pipe, and is safe to look at."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from cli_process import OnTerminal, phiquant

import phiquant as pq
from phiquant.inspection import inspect

DATA = Path(__file__).parents[1] / "data"


def shown(*args: object) -> str:
    done = phiquant("inspect", *args)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini", "phi3win"])
def test_a_folder_shows_config_and_every_tensor(fixture: str) -> None:
    text = shown(DATA / fixture)
    checkpoint = pq.open(DATA / fixture)
    lines = [line.split() for line in text.splitlines()]
    names = [line[0] for line in lines if line]
    for entry in checkpoint.entries.values():
        assert entry.name in names
    assert ["architectures", "['Phi3ForCausalLM']"] in lines
    assert f"{len(checkpoint)} tensors" in text
    assert "cannot convert" not in text


def test_a_gguf_shows_metadata_and_every_tensor(converted: Any) -> None:
    path = converted("phi35", "q4_k_m")
    text = shown(path)
    checkpoint = pq.open(path)
    lines = [line.split() for line in text.splitlines()]
    names = [line[0] for line in lines if line]
    for key in (*checkpoint.entries, *checkpoint.metadata):
        assert key in names
    assert ["blk.2.ffn_down.weight", "256", "x", "768", "q6_k", "161.28", "kB"] in lines
    assert ["general.file_type", "uint32", "15"] in lines
    assert ["q6_k", "5", "1.84", "M", "1.51", "MB", "33.1%", "6.56"] in lines


def test_long_values_are_shortened_for_people_and_whole_for_programs(converted: Any) -> None:
    path = converted("phi35", "q8_0")
    text = shown(path)
    assert "4096 items: '<unk>', '<s>', '</s>'" in text
    assert "430 characters: {% for message" in text
    assert max(map(len, text.splitlines())) < 250
    told = json.loads(shown(path, "--json"))
    checkpoint = pq.open(path)
    assert told["metadata"]["tokenizer.ggml.tokens"] == {
        "type": "array:string",
        "value": list(checkpoint.metadata["tokenizer.ggml.tokens"]),
    }
    template = told["metadata"]["tokenizer.chat_template"]["value"]
    assert template == checkpoint.metadata["tokenizer.chat_template"]


def test_json_holds_every_tensor_and_totals(converted: Any) -> None:
    path = converted("phi3win", "q4_k_m")
    told = json.loads(shown(path, "--json"))
    entries = pq.open(path).entries.values()
    assert [(t["name"], t["type"], t["shape"], t["offset"]) for t in told["tensors"]] == [
        (e.name, e.type, list(e.shape), e.offset) for e in entries
    ]
    assert told["bytes"] == sum(total["bytes"] for total in told["totals"])
    assert told["weights"] == sum(math.prod(e.shape) for e in entries)
    assert told["files"] == [{"path": str(path), "bytes": path.stat().st_size}]
    assert told["problem"] is None


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A GGUF of another maker: foreign types, hostile names, numbers that JSON has no word for."""
    path = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(str(path), "whisper")
    writer.add_string("evil\x1b[2J", "\x1b]0;owned\x07 line\nline")
    writer.add_float32("not.a.number", float("nan"))
    writer.add_array("empty.like", [True])
    writer.add_string("wide", "漢字" * 300)
    types = gguf.GGMLQuantizationType
    for kind in (types.IQ4_XS, types.Q2_K, types.TQ1_0):
        _, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor(kind.name, np.zeros((4, size), np.uint8), raw_dtype=kind)
    writer.add_tensor("ints\x1b[31m", np.arange(6, dtype=np.int64).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_types_that_phiquant_does_not_decode_are_listed(strange: Path) -> None:
    lines = [line.split() for line in shown(strange).splitlines()]
    assert ["IQ4_XS", "4", "x", "256", "iq4_xs", "544", "bytes"] in lines
    assert ["TQ1_0", "4", "x", "256", "tq1_0", "216", "bytes"] in lines
    assert ["general.architecture", "string", "whisper"] in lines


def test_files_do_not_command_the_terminal(strange: Path, tmp_path: Path) -> None:
    assert "\x1b" not in shown(strange)
    terminal = OnTerminal("inspect", strange, cwd=tmp_path, NO_COLOR="1")
    assert terminal.end() == 0
    assert "\x1b" not in terminal.shown
    assert "\\x1b]0;owned\\x07 line\\nline" in terminal.shown


def test_json_has_words_for_what_is_no_number(strange: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    told = json.loads(shown(strange, "--json"), parse_constant=refuse)
    assert told["metadata"]["not.a.number"]["value"] == "nan"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_lines_fit_the_terminal(
    strange: Path, tmp_path: Path, converted: Any, columns: int
) -> None:
    for path in (converted("phi35", "q4_k_m"), DATA / "phi35", strange):
        terminal = OnTerminal("inspect", path, cwd=tmp_path, columns=columns, NO_COLOR="1")
        assert terminal.end() == 0
        _, *tables = terminal.shown.splitlines()
        for line in tables:
            wide = sum(2 if character in "漢字" else 1 for character in line)
            assert wide <= columns, line


def test_layers_that_are_alike_share_rows_on_a_terminal(converted: Any, tmp_path: Path) -> None:
    path = converted("phi35", "q4_k_m")
    terminal = OnTerminal("inspect", path, cwd=tmp_path, NO_COLOR="1")
    assert terminal.end() == 0
    lines = [line.split() for line in terminal.shown.splitlines()]
    assert ["blk.*.ffn_down.weight", "256", "x", "768", "2", "q6_k", "322.56", "kB"] in lines
    assert "blk.0." not in terminal.shown
    terminal = OnTerminal("inspect", path, "--all", cwd=tmp_path, NO_COLOR="1")
    assert terminal.end() == 0
    assert "blk.0." in terminal.shown


def test_terminals_get_bold_headings_unless_they_object(tmp_path: Path) -> None:
    for changes, bold in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        terminal = OnTerminal("formats", cwd=tmp_path, **changes)
        assert terminal.end() == 0
        assert ("\x1b[1mTargets\x1b[0m" in terminal.shown) is bold


def test_a_folder_that_cannot_be_converted_is_shown_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DATA / "phi3win", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"architectures": ["LlamaForCausalLM"]})
    )
    text = shown(folder)
    assert "phiquant cannot convert this: " in text
    assert "LlamaForCausalLM is not supported" in text
    assert "lm_head.weight" in text
    (folder / "config.json").write_text("{")
    assert "not JSON" in json.loads(shown(folder, "--json"))["problem"]
    (folder / "config.json").unlink()
    assert json.loads(shown(folder, "--json"))["config"] == {}


def test_one_safetensors_file_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    pq.safetensors.write(path, {"s": np.array(1, np.float32), "a": np.zeros((2, 3), np.uint8)})
    lines = [line.split() for line in shown(path).splitlines()]
    assert ["a", "2", "x", "3", "u8", "6", "bytes"] in lines
    assert ["s", "scalar", "f32", "4", "bytes"] in lines


def test_scripts_can_inspect_without_the_command_line() -> None:
    found = inspect(DATA / "phi35")
    assert found.problem is None
    assert found.config["num_hidden_layers"] == 6
    assert [total.type for total in found.totals] == ["bf16"]
