"""Every command does what its help says: results on stdout, words on stderr, and the API's bytes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_process import phiquant

import phiquant as pq
from phiquant import catalogue

DATA = Path(__file__).parents[1] / "data"
PHI3WIN = DATA / "phi3win"
COMMANDS = ("convert", "plan", "inspect", "formats", "doctor")


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_without_arguments_it_shows_its_help() -> None:
    done = phiquant()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == phiquant("--help").stdout
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_fits_eighty_columns(command: str) -> None:
    done = phiquant(command, "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == phiquant(command, "--help").stdout
    text = done.stdout.partition("Example")[0]
    assert max(map(len, text.splitlines())) <= 80
    assert "--json" in text


def test_version_is_the_package_s() -> None:
    assert phiquant("--version").stdout == f"phiquant {pq.__version__}\n"


def test_convert_writes_what_the_api_writes_and_prints_its_path(
    tmp_path: Path, converted: Any
) -> None:
    done = phiquant("convert", DATA / "phi35", "--to", "Q4_K_M", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == "phi35-q4_k_m.gguf\n"
    assert files_in(tmp_path) == ["phi35-q4_k_m.gguf"]
    path = tmp_path / "phi35-q4_k_m.gguf"
    assert path.read_bytes() == converted("phi35", "q4_k_m").read_bytes()


def test_convert_s_last_words_name_the_result_and_a_command_that_runs_it(tmp_path: Path) -> None:
    done = phiquant("convert", DATA / "phi35", "--to", "q4_k_m", cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert lines[0] == "phi35-q4_k_m.gguf: 4.64 MB, 5.14 bits per weight"
    assert any(line.split()[:2] == ["q4_k", "21"] for line in lines)
    assert lines[-1] == "Run it: llama-cli -m phi35-q4_k_m.gguf -p 'Hello'"


def test_fallbacks_are_told(tmp_path: Path) -> None:
    done = phiquant("convert", PHI3WIN, "--to", "q4_k_m", cwd=tmp_path)
    assert "note: 6 tensors have rows of 320, no multiple of q4_k's block: q5_0" in done.stderr


def test_quiet_says_nothing_but_the_path(tmp_path: Path) -> None:
    done = phiquant("convert", PHI3WIN, "--to", "q4_k_m", "-q", "-o", "x.gguf", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x.gguf\n", "")


def test_several_targets_go_into_a_folder_in_the_order_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    done = phiquant("convert", PHI3WIN, "--to", "q8_0", "--to", "gguf:f16", "-o", out, "-q")
    assert done.stdout.splitlines() == [f"{out}/phi3win-q8_0.gguf", f"{out}/phi3win-f16.gguf"]
    assert files_in(out) == ["phi3win-f16.gguf", "phi3win-q8_0.gguf"]


@pytest.mark.parametrize("out", ["out", "out/"])
def test_a_folder_as_output_takes_the_default_name(tmp_path: Path, out: str) -> None:
    (tmp_path / "out").mkdir()
    done = phiquant("convert", PHI3WIN, "--to", "q8_0", "-o", out, "-q", cwd=tmp_path)
    assert done.stdout == "out/phi3win-q8_0.gguf\n"


@pytest.mark.parametrize("source", [".", "./", "..", "../phi3win"])
def test_sources_without_a_name_of_their_own_lend_the_folder_s(tmp_path: Path, source: str) -> None:
    model = tmp_path / "phi3win"
    (model / "inner").mkdir(parents=True)
    for file in PHI3WIN.iterdir():
        (model / file.name).symlink_to(file) if file.suffix == ".npz" else (
            model / file.name
        ).write_bytes(file.read_bytes())
    here = model / "inner" if source == ".." else model
    done = phiquant("convert", source, "--to", "q8_0", "-q", cwd=here)
    assert done.stdout == "phi3win-q8_0.gguf\n", done.stderr


def test_json_is_the_report_and_nothing_else(tmp_path: Path) -> None:
    done = phiquant(
        *("convert", DATA / "phi35", "--to", "q4_k_m", "--json", "--sha256"), cwd=tmp_path
    )
    report = json.loads(done.stdout)
    assert len(done.stdout.splitlines()) == 1
    (file,) = report["files"]
    raw = (tmp_path / file["path"]).read_bytes()
    assert file["nbytes"] == len(raw)
    assert file["sha256"] == hashlib.sha256(raw).hexdigest()
    assert {tensor["codec"] for tensor in file["tensors"]} == {"q4_k", "q6_k", "f32"}
    assert report["hints"] == ["llama-cli -m phi35-q4_k_m.gguf -p 'Hello'"]


def test_sha256_is_shown_as_sha256sum_takes_it(tmp_path: Path) -> None:
    done = phiquant("convert", PHI3WIN, "--to", "q8_0", "--sha256", cwd=tmp_path)
    digest = hashlib.sha256((tmp_path / "phi3win-q8_0.gguf").read_bytes()).hexdigest()
    assert f"sha256: {digest}  phi3win-q8_0.gguf" in done.stderr


def test_modelfile_stands_beside_the_result(tmp_path: Path) -> None:
    done = phiquant("convert", DATA / "phi35", "--to", "q8_0", "--modelfile", cwd=tmp_path)
    assert done.stdout == "phi35-q8_0.gguf\n"
    assert files_in(tmp_path) == ["Modelfile", "phi35-q8_0.gguf"]
    assert (tmp_path / "Modelfile").read_text().startswith("FROM ./phi35-q8_0.gguf\n")
    assert done.stderr.endswith("With Ollama: ollama create phi35-q8_0 -f Modelfile\n")


@pytest.mark.parametrize("command", [["plan"], ["convert", "--dry-run"]])
def test_a_plan_writes_nothing_and_tells_the_exact_size(
    tmp_path: Path, command: list[str], converted: Any
) -> None:
    done = phiquant(*command, DATA / "phi35", "--to", "q4_k_m", cwd=tmp_path)
    assert (done.returncode, done.stderr, files_in(tmp_path)) == (0, "", [])
    size = converted("phi35", "q4_k_m").stat().st_size
    assert f"({size} bytes)" in done.stdout
    assert "output: phi35-q4_k_m.gguf" in done.stdout
    assert f"free in {tmp_path}" in done.stdout
    assert "memory:" in done.stdout


def test_plan_json_holds_every_tensor_s_place(tmp_path: Path, converted: Any) -> None:
    done = phiquant("plan", DATA / "phi35", "--to", "q4_k_m", "--json", "-o", "x", cwd=tmp_path)
    plan = json.loads(done.stdout)
    assert done.stderr == ""
    assert plan["outputs"] == ["x"]
    assert plan["memory"] < 300_000_000
    (file,) = plan["targets"][0]["files"]
    written = pq.open(converted("phi35", "q4_k_m"))
    assert [(t["name"], t["offset"], t["bytes"], t["codec"]) for t in file["tensors"]] == [
        (e.name, e.offset, e.nbytes, e.type) for e in written.entries.values()
    ]


@pytest.mark.parametrize(
    ("options", "tensor", "codec"),
    [
        (["--tensor", "*.down_proj.weight=Q8_0"], "blk.0.ffn_down.weight", "q8_0"),
        (["--tensor", "gguf:*.0.*.o_proj.*=f16"], "blk.0.attn_output.weight", "f16"),
        (["--output-type", "q4_0"], "output.weight", "q4_0"),
        (["--embedding-type", "q8_0"], "token_embd.weight", "q8_0"),
        (["--pure"], "blk.2.ffn_down.weight", "q4_k"),
        (["--mix", "current"], "blk.0.attn_qkv.weight", "q4_k"),
        (["--mix", "published"], "blk.0.attn_qkv.weight", "q5_k"),
    ],
)
def test_options_reach_the_plan(options: list[str], tensor: str, codec: str) -> None:
    done = phiquant("plan", DATA / "phi35", "--to", "q4_k_m", "--json", *options)
    tensors = json.loads(done.stdout)["targets"][0]["files"][0]["tensors"]
    assert {t["name"]: t["codec"] for t in tensors}[tensor] == codec


def test_requantize_takes_a_quantized_source(tmp_path: Path, converted: Any) -> None:
    source = converted("phi35", "q8_0")
    refused = phiquant("convert", source, "--to", "q4_0", "-o", "x.gguf", cwd=tmp_path)
    assert refused.returncode == 3
    assert "--requantize" in refused.stderr
    done = phiquant(
        *("convert", source, "--to", "q4_0", "-o", "x.gguf", "--requantize"), cwd=tmp_path
    )
    assert (done.returncode, files_in(tmp_path)) == (0, ["x.gguf"])


def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path, converted: Any) -> None:
    phiquant(
        *("convert", DATA / "phi35", "--to", "q5_k_m", "--threads", "3", "-o", "x"), cwd=tmp_path
    )
    assert (tmp_path / "x").read_bytes() == converted("phi35", "q5_k_m").read_bytes()


def test_overwrite_replaces_the_result(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("old")
    done = phiquant(
        *("convert", PHI3WIN, "--to", "q8_0", "-o", "x.gguf", "--overwrite"), cwd=tmp_path
    )
    assert done.returncode == 0
    assert (tmp_path / "x.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("name", ["🙂 phi.gguf", "ф" * 125 + ".gguf", "-dash.gguf", "a\nb.gguf"])
def test_any_name_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    done = phiquant("convert", PHI3WIN, "--to", "q8_0", f"--output={name}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{name}\n")
    assert files_in(tmp_path) == [name]


def test_a_name_that_is_no_utf8_comes_back_in_its_own_bytes(tmp_path: Path) -> None:
    name = b"\xff\xfe.gguf"
    read, write = os.pipe()
    with os.fdopen(write, "wb") as stdout:
        done = phiquant(
            *("convert", PHI3WIN, "--to", "q8_0", "-q", "-o", name), cwd=tmp_path, stdout=stdout
        )
    with os.fdopen(read, "rb") as printed:
        assert (done.returncode, printed.read()) == (0, name + b"\n")
    assert os.listdir(os.fsencode(tmp_path)) == [name]  # noqa: PTH208


def test_formats_lists_targets_and_codecs() -> None:
    done = phiquant("formats")
    assert (done.returncode, done.stderr) == (0, "")
    for target in catalogue.all_targets():
        assert target.target in done.stdout
        assert target.about in done.stdout
    for codec in pq.all_codecs():
        assert f"\n  {codec.name} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_formats_tells_the_sizes_that_published_files_have() -> None:
    told = json.loads(phiquant("formats", "--json").stdout)
    sizes = {row["target"]: row["example_bytes"] for row in told["targets"]}
    # bf16 is Phi-3.5-mini's 3 821 079 552 weights with float32 norms; Q8_0 34 bytes a block of 32.
    assert sizes["gguf:bf16"] == 2 * 3821079552 + 2 * 65 * 3072
    assert told["codecs"] == [
        {key: getattr(codec, key) for key in row}
        for codec, row in zip(pq.all_codecs(), told["codecs"], strict=True)
    ]
    assert all(row["about"] for row in told["targets"])


def test_doctor_tells_what_this_machine_has() -> None:
    done = phiquant("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("No problems found.\n")
    told = json.loads(phiquant("doctor", "--json", HF_HUB_OFFLINE="1").stdout)
    assert told["phiquant"]["version"] == pq.__version__
    assert told["machine"]["instruction sets"]["active"] == pq._core.active_arch()
    assert told["machine"]["disk"]["free"] > 0
    assert told["packages"]["numpy"]
    assert told["runtimes"]["llama-cpp-python"]["install"] == "pip install 'phiquant[llama]'"
    assert told["hub"]["offline mode"] is True
    assert told["problems"] == []


def test_doctor_finds_an_instruction_set_that_is_not_there() -> None:
    done = phiquant("doctor", PHIQUANT_ARCH="avx1024")
    assert done.returncode == 0
    assert "problem: PHIQUANT_ARCH is 'avx1024'" in done.stdout
    (problem,) = json.loads(phiquant("doctor", "--json", PHIQUANT_ARCH="avx1024").stdout)[
        "problems"
    ]
    assert "Name one of" in problem


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("phiquant con", "convert"),
        ("phiquant convert x --to q4_k", "q4_k_m"),
        ("phiquant convert x --output-type q6", "q6_k"),
        ("phiquant convert x --over", "--overwrite"),
    ],
)
def test_shells_can_complete(words: str, expected: str) -> None:
    done = phiquant(_PHIQUANT_COMPLETE="bash_complete", COMP_LINE=words)
    assert f"plain,{expected}" in done.stdout.split()
    assert "_phiquant_completion" in phiquant(_PHIQUANT_COMPLETE="bash_source").stdout
