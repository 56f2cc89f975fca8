"""OpenVINO targets: presets, groups, what does not fit, and what a plan says before a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import phiquant as pq
from phiquant.architectures import read_config, spec_from_config
from phiquant.openvino import read_network
from phiquant.targets.names import PRESETS, parse_target
from phiquant.targets.openvino_options import settings_of
from places import DATA
from tiny_model import config_of, weights_of, write_model


def encoding(config: Path, target: str, role: str = "ffn_down") -> str:
    spec = spec_from_config(read_config(config), file=str(config))
    settings = settings_of(parse_target(target), spec)
    tensor = next(tensor for tensor in spec.tensors if tensor.role == role)
    return settings.encoding(tensor).codec


@pytest.mark.parametrize(
    ("target", "matrix", "outer"),
    [
        ("fp16", "f16", "f16"),
        ("int8", "int8_asym_channel", "int8_asym_channel"),
        ("int8_sym", "int8_sym_channel", "int8_sym_channel"),
        ("int4_sym", "int4_sym_g128", "int8_asym_channel"),
        ("int4_asym", "int4_asym_g128", "int8_asym_channel"),
        ("int4_sym,group=32", "int4_sym_g32", "int8_asym_channel"),
        ("int4_asym,group=channel,ratio=1.0", "int4_asym_channel", "int8_asym_channel"),
    ],
)
def test_presets_are_nncfs_modes(target: str, matrix: str, outer: str) -> None:
    config = DATA / "phi35" / "config.json"
    for role, wanted in (("ffn_down", matrix), ("attn_qkv", matrix), ("embedding", outer),
                         ("output", outer)):  # fmt: skip
        assert encoding(config, f"openvino:{target}", role).split(",")[0] == wanted
    assert encoding(config, f"openvino:{target}", "attn_norm") == "f32"


@pytest.mark.parametrize(
    ("config", "group"),
    [
        ("phi-3-mini-4k-instruct", 64),
        ("phi-3.5-mini-instruct", 64),
        ("phi-4-mini-instruct", 64),
        ("phi-3-medium-4k-instruct", 128),
        ("phi-4", 128),
    ],
)
def test_int4_alone_takes_optimum_intels_group_for_the_model(config: str, group: int) -> None:
    path = DATA / "configs" / f"{config}.json"
    assert encoding(path, "openvino:int4").startswith(f"int4_asym_g{group},")


def test_rows_that_no_group_of_128_divides_get_groups_of_64() -> None:
    plan = pq.plan(DATA / "phi3win", "openvino:int4_sym")
    assert "groups of 64 instead" in plan.targets[0].notes[0]
    codecs = {t.codec for file in plan.targets[0].files for t in file.tensors}
    assert "int4_sym_g64,rule=nncf" in codecs


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("openvino:int4,group=128", r"rows of 320.*group=16 or 32 or 64 or channel"),
        ("openvino:int4,group=48", "no group"),
        ("openvino:int4,group", "no group"),
        ("openvino:int4,group=-1", "no group"),
        ("openvino:int8,group=64", "int8 has no groups"),
        ("openvino:fp16,ratio=1.0", "fp16 has no groups"),
        ("openvino:int4,ratio=1.1", "no part of the weights"),
        ("openvino:int4,ratio=-0.5", "no part of the weights"),
        ("openvino:int4,ratio=nan", "no part of the weights"),
        ("openvino:int4,ratio", "no part of the weights"),
        ("openvino:int4,block=32", "no option 'block'"),
        ("openvino:int5", "openvino has no preset"),
        ("openvino:nf4", "does not write openvino:nf4 yet"),
        ("openvino:mxfp4", "does not write openvino:mxfp4 yet"),
        ("openvino", "without a preset"),
    ],
)
def test_what_makes_no_sense_is_refused(target: str, words: str) -> None:
    with pytest.raises(pq.UsageError, match=words):
        pq.plan(DATA / "phi3win", target)


@pytest.mark.parametrize("ratio", ["0", "0.3", "0.7", "0.99"])
def test_a_ratio_bounds_the_weights_of_four_bits_by_the_largest_error_at_eight(
    ratio: str,
) -> None:
    plan = pq.plan(DATA / "phi35", f"openvino:int4_asym,group=64,ratio={ratio}")
    codes = [t for file in plan.targets[0].files for t in file.tensors if t.plane == 0]
    layers = [t for t in codes if "layers" in t.name and len(t.shape) == 2]
    four = sum(t.weights for t in layers if t.codec.startswith("int4"))
    whole = sum(t.weights for t in layers)
    assert four == 0 or four / whole < float(ratio)
    # The least bit of room: the next matrix would have been too much.
    assert (four + max(t.weights for t in layers)) / whole >= float(ratio)


def test_the_measurement_behind_a_ratio_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "openvino:int4_asym,group=64,ratio=0.5"
    first = pq.plan(DATA / "phi4mini", target).to_json()

    def refuse(*_: object) -> None:
        raise AssertionError("weights were read again")

    monkeypatch.setattr("phiquant.reference.weights.Weights", refuse)
    assert pq.plan(DATA / "phi4mini", target).to_json() == first


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("openvino:*.down_proj.weight=q4_k", "no codec 'q4_k'"),
        ("openvino:*.up_proj.weight=f16", "matches no tensor"),
        ("openvino:*norm*=int8_sym_channel", "is for matrices"),
        ("openvino:*.o_proj.weight=int4_sym_g128", "no multiple"),
        ("gguf:*=q8_0", "no such target"),
        ("*=q8_0", "no such target"),
    ],
)
def test_overrides_that_cannot_be_are_refused(override: str, words: str) -> None:
    with pytest.raises(pq.UsageError, match=words):
        pq.plan(DATA / "phi3win", "openvino:int8", tensor=override)


@pytest.mark.parametrize("preset", PRESETS["openvino"])
def test_a_plan_tells_exactly_what_is_written(tmp_path: Path, preset: str) -> None:
    plan = pq.plan(DATA / "phi35", f"openvino:{preset}")
    plan.run(tmp_path / "out")
    written = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert written == {file.name: file.size for file in plan.targets[0].files}
    assert sum(written.values()) == plan.nbytes


def test_a_folder_without_generation_settings_and_template_file_gets_them(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("reference*", "*.gguf", "generation_config.json")
    source = shutil.copytree(DATA / "phi35", tmp_path / "phi35", ignore=ignored)
    pq.convert(source, "openvino:int8", tmp_path / "out")
    made = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert made == {"eos_token_id": [4000], "bos_token_id": 1, "pad_token_id": 4000}
    config = json.loads((DATA / "phi35" / "tokenizer_config.json").read_text())
    template = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert template == config["chat_template"]


def test_a_template_that_xml_cannot_hold_stands_in_its_file(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("reference*", "*.gguf")
    source = shutil.copytree(DATA / "phi35", tmp_path / "phi35", ignore=ignored)
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = "{{ '\x1b[0m' }} <&\"'> \n\t \U0001f600"
    path.write_text(json.dumps(config))
    pq.convert(source, "openvino:int8", tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == config["chat_template"]
    assert "chat_template" not in read_network(tmp_path / "out/openvino_tokenizer.xml").information
    config["chat_template"] = config["chat_template"].replace("\x1b", "")
    path.write_text(json.dumps(config))
    pq.convert(source, "openvino:int8", tmp_path / "out", overwrite=True)
    told = read_network(tmp_path / "out/openvino_tokenizer.xml").information
    assert told["chat_template"] == config["chat_template"]


def test_a_gguf_is_no_source(converted) -> None:
    with pytest.raises(pq.UnsupportedError, match="Hugging Face checkpoint only"):
        pq.plan(converted("phi35", "f16"), "openvino:int8")


def test_one_read_serves_gguf_and_openvino(tmp_path: Path) -> None:
    report = pq.convert(DATA / "phi4mini", ["q8_0", "openvino:int8"], tmp_path)
    alone = pq.plan(DATA / "phi4mini", "q8_0").source_bytes
    assert pq.plan(DATA / "phi4mini", ["q8_0", "openvino:int8"]).source_bytes == alone
    assert report is not None
    assert (tmp_path / "phi4mini-openvino-int8" / "openvino_model.bin").exists()
    assert (tmp_path / "phi4mini-q8_0.gguf").exists()


@pytest.mark.parametrize("preset", ["fp16", "int4_sym"])
def test_numbers_beyond_halves_are_refused_by_name(tmp_path: Path, preset: str) -> None:
    config = config_of()
    weights = weights_of(config, np.float32)
    name = "model.layers.0.mlp.down_proj.weight"
    # As a weight, and as a scale of weights.
    weights[name][3, 5] = 7e4 if preset == "fp16" else 7e5
    source = write_model(tmp_path / "big", weights)
    with pytest.raises(pq.ValueRangeError, match="down_proj"):
        pq.convert(source, f"openvino:{preset}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_importance_is_heeded_by_best_alone() -> None:
    file = DATA / "phi35" / "imatrix.gguf"
    target = "openvino:int4_sym"
    plain, best = (
        pq.plan(DATA / "phi35", target, importance=file, quality=quality).targets[0]
        for quality in ("reference", "best")
    )
    assert "heeds no importance" in plain.notes[-1]
    assert not best.notes
    weighed = [t for file in best.files for t in file.tensors if t.importance is not None]
    assert {t.codec for t in weighed} == {"int4_sym_g128,rule=nncf"}
    assert all(t.best for t in weighed)
    assert all(t.importance is None for file in plain.files for t in file.tensors)
