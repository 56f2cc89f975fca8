"""OpenVINO targets: presets, groups, what does not fit, and what a plan says before a run."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import phiquant as pq
from phiquant.architectures import read_config, spec_from_config
from phiquant.openvino import read_network
from phiquant.reference.weights import Weights
from phiquant.targets.names import PRESETS, parse_target
from phiquant.targets.openvino_options import settings_of
from places import DATA, FIXTURES
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
        ("nf4", "nf4_g128", "int8_asym_channel"),
        ("nf4,group=channel", "nf4_channel", "int8_asym_channel"),
        ("mxfp4", "mxfp4", "mxfp8"),
    ],
)
def test_presets_are_nncfs_modes(target: str, matrix: str, outer: str) -> None:
    config = DATA / "phi35" / "config.json"
    for role, wanted in (("ffn_down", matrix), ("attn_qkv", matrix), ("embedding", outer),
                         ("output", outer)):  # fmt: skip
        assert encoding(config, f"openvino:{target}", role).split(",")[0] == wanted
    assert encoding(config, f"openvino:{target}", "attn_norm") == "f32"


@pytest.mark.parametrize(
    ("config", "group", "awq"),
    [
        ("phi-3-mini-4k-instruct", 64, False),
        ("phi-3.5-mini-instruct", 64, True),
        ("phi-4-mini-instruct", 64, True),
        ("phi-3-medium-4k-instruct", 128, False),
        ("phi-4", 128, False),
    ],
)
def test_int4_alone_is_optimum_intels_default_for_the_model(
    config: str, group: int, awq: bool
) -> None:
    spec = spec_from_config(read_config(DATA / "configs" / f"{config}.json"))
    settings = settings_of(parse_target("openvino:int4"), spec)
    assert settings.matrix.codec.startswith(f"int4_asym_g{group},")
    assert settings.awq == awq
    assert len(settings.scaled(spec)) == (spec.layers if awq else 0)
    assert any("estimates scales" in note for note in settings.notes) == (group == 64 and not awq)
    assert not settings_of(parse_target("openvino:int4,noawq"), spec).awq
    assert not settings_of(parse_target("openvino:int4,group=64"), spec).awq
    assert settings_of(parse_target("openvino:int4_sym,awq"), spec).awq
    # Phi-4-reasoning is Phi-4 with a longer context, and named in those defaults.
    if config == "phi-4":
        reasoning = settings_of(parse_target("openvino:int4"), replace(spec, context=32768))
        assert reasoning.matrix.group == 64
        assert not reasoning.awq


def test_awq_leaves_what_has_eight_bits_as_it_is() -> None:
    spec = spec_from_config(read_config(DATA / "phi35" / "config.json"))
    settings = settings_of(
        parse_target("openvino:int4_asym,group=64,awq"), spec, [("*.2.*down*", "int8_sym_channel")]
    )
    assert [tensor.layer for tensor in settings.scaled(spec)] == [0, 1, 3, 4, 5]


def weights_as_float32(folder: Path) -> dict[str, np.ndarray]:
    opened = pq.open(folder)
    whole = Weights(opened)
    return {name: whole.whole(name) for name in opened.entries if "down_proj" in name}


@pytest.mark.parametrize("fixture", FIXTURES)
def test_scaled_columns_are_read_back_as_the_sources(tmp_path: Path, fixture: str) -> None:
    source = pq.open(DATA / fixture)
    made = {}
    for target in ("int4_asym,group=64,awq", "int4_asym,group=64"):
        pq.convert(DATA / fixture, f"openvino:{target}", tmp_path / target)
        made[target] = weights_as_float32(tmp_path / target)
    for name, found in made["int4_asym,group=64,awq"].items():
        wanted = np.asarray(source[name], np.float32)
        assert abs(found - wanted).mean() < 0.12 * abs(wanted).mean()
        opened = pq.open(tmp_path / "int4_asym,group=64,awq")[name]
        assert np.array_equal(opened.dequantize(), found)
        assert not np.array_equal(found, made["int4_asym,group=64"][name])


def test_best_folds_awq_into_the_rows_before(tmp_path: Path) -> None:
    target = "openvino:int4_asym,group=64,awq"
    for quality in ("reference", "best"):
        pq.convert(DATA / "phi35", target, tmp_path / quality, quality=quality)
    kinds = {
        quality: Counter(
            layer.kind
            for layer in read_network(tmp_path / quality / "openvino_model.xml").layers.values()
        )
        for quality in ("reference", "best")
    }
    assert kinds["reference"]["Multiply"] - kinds["best"]["Multiply"] == 6
    # Rows of up times columns of down are what they were in the source; columns of down are alike.
    source, made = pq.open(DATA / "phi35"), pq.open(tmp_path / "best")
    up, down = (f"model.layers.3.mlp.{part}.weight" for part in ("gate_up_proj", "down_proj"))
    half = len(np.asarray(source[up])) // 2
    before = [np.asarray(source[name], np.float32) for name in (down, up)]
    after = [made[name].dequantize() for name in (down, up)]
    wanted, found = (matrices[0] @ matrices[1][half:] for matrices in (before, after))
    assert np.linalg.norm(found - wanted) < 0.15 * np.linalg.norm(wanted)
    spread = [np.std(abs(m).mean(axis=0)) / abs(m).mean() for m in (before[0], after[0])]
    assert spread[1] < 0.3 * spread[0]


def test_the_measurement_behind_awq_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "openvino:int4_asym,group=64,awq"
    first = pq.plan(DATA / "phi4mini", target).to_json()

    def refuse(*_: object) -> None:
        raise AssertionError("weights were read again")

    monkeypatch.setattr("phiquant.reference.weights.Weights", refuse)
    assert pq.plan(DATA / "phi4mini", target).to_json() == first


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
        ("openvino:int4,awq,noawq", "awq or noawq"),
        ("openvino:int4,awq=yes", "no option 'awq'"),
        ("openvino:int8,awq", "int8 has no groups"),
        ("openvino:mxfp4,group=64", "mxfp4 has no groups"),
        ("openvino:nf4,group=128", r"rows of 320.*group=16 or 32 or 64 or channel"),
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


def test_a_gguf_is_no_source_without_a_tokenizer(converted) -> None:
    with pytest.raises(pq.UsageError, match=r"no tokenizer\.json"):
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
