"""MLX folders: what users may ask for, what is written for it, and what the reader refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiquant as pq
from phiquant import safetensors
from phiquant.architectures import spec_from_config
from phiquant.errors import FormatError, PhiquantError, UnsupportedError, UsageError
from phiquant.recipes.mlx import PRESETS, assign
from phiquant.targets import mlx
from places import DATA, FIXTURES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlx") / "phi4mini"
    pq.convert(DATA / "phi4mini", "mlx:4bit", path)
    return path


def config_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_preset_is_as_large_as_planned_and_is_read_back(tmp_path, fixture, preset):
    plan = pq.plan(DATA / fixture, f"mlx:{preset}")
    report = plan.run(tmp_path / "out")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert sizes == {file.name: file.size for file in plan.targets[0].files}
    opened, source = pq.open(tmp_path / "out"), pq.open(DATA / fixture)
    assert set(opened) == set(source)
    errors = {t.source: t.relative_error for file in report.files for t in file.tensors}
    for name in opened:
        weights = np.asarray(source[name], np.float32)
        tensor = opened[name]
        if isinstance(tensor, pq.QuantizedTensor):
            assert tensor.error(weights) == pytest.approx(errors[name], rel=1e-3)
        else:
            # Norms, and what does not fit a group; exact in bfloat16, near in float16.
            assert abs(tensor.astype(np.float32) - weights).max() <= (preset == "fp16") * 1e-4


def test_tokenizer_templates_and_licences_come_along(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(DATA / "phi4mini", source)
    (source / "LICENSE").write_text("Do as you please.\n")
    (source / "README.md").write_text("---\nlicense: mit\ntags:\n- nlp\n---\nWords.\n")
    pq.convert(source, "mlx:4bit", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "model.safetensors", "model.safetensors.index.json", "config.json", "README.md", "LICENSE",
        "generation_config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
        "special_tokens_map.json", "vocab.json", "merges.txt",
    }  # fmt: skip
    for name in ("tokenizer.json", "generation_config.json", "LICENSE"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'license: "mit"' in card
    assert 'tags: ["mlx", "nlp"]' in card


def test_without_a_tokenizer_nothing_is_written(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DATA / "phi3win" / name, source / name)
    with pytest.raises(PhiquantError):
        pq.convert(source, "mlx:4bit", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_both_spellings_say_how_matrices_are_held(tmp_path):
    pq.convert(DATA / "phi35", "mlx:mixed_3_6,group=32", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["quantization"] == config["quantization_config"]
    low = {"group_size": 32, "bits": 3, "mode": "affine"}
    high = low | {"bits": 6}
    named = {key: value for key, value in config["quantization"].items() if key not in low}
    assert {key: config["quantization"][key] for key in low} == low
    # mlx-lm's rule for six layers: the third of every three, fused queries, keys and values included.
    assert named == {
        "lm_head": high,
        **{
            f"model.layers.{layer}.{name}": high
            for layer in (2, 5)
            for name in ("self_attn.qkv_proj", "mlp.down_proj")
        },
    }


def test_overrides_name_their_matrices_in_the_config(tmp_path):
    pq.convert(
        DATA / "phi4mini",
        "mlx:4bit",
        tmp_path / "out",
        tensor=["mlx:*.0.*.qkv_proj.weight=8bit_g32", "mlx:*embed*=bf16", "mlx:*.1.*down*=mxfp4"],
    )
    config = config_of(tmp_path / "out")["quantization"]
    assert config["model.layers.0.self_attn.qkv_proj"] == {
        "group_size": 32, "bits": 8, "mode": "affine",
    }  # fmt: skip
    assert config["model.embed_tokens"] is False
    assert config["model.layers.1.mlp.down_proj"]["mode"] == "mxfp4"
    opened = pq.open(tmp_path / "out")
    assert opened["model.embed_tokens.weight"].dtype.name == "bfloat16"
    assert opened["model.layers.0.self_attn.qkv_proj.weight"].codec.name == (
        "int8_asym_g32,rule=mlx"
    )
    assert opened["model.layers.1.mlp.down_proj.weight"].codec.name == "mxfp4,layout=mlx"


def test_matrices_that_fit_no_group_stay_floats_and_are_named_so(tmp_path):
    plan = pq.plan(DATA / "phi3win", "mlx:4bit,group=128")  # its rows have 320 values
    assert any("no multiple of the group" in note for note in plan.targets[0].notes)
    plan.run(tmp_path / "out")
    config = config_of(tmp_path / "out")["quantization"]
    assert config["model.layers.0.self_attn.qkv_proj"] is False


def test_best_quality_with_importance_lowers_the_weighted_error(tmp_path):
    importance = DATA / "phi35" / "imatrix.gguf"
    known = pq.convert(DATA / "phi35", "mlx:3bit", tmp_path / "known")
    best = pq.convert(DATA / "phi35", "mlx:3bit", tmp_path / "best", quality="best")
    weighted = pq.convert(
        DATA / "phi35", "mlx:3bit", tmp_path / "weighted", quality="best", importance=importance
    )
    columns = np.asarray(pq.open(importance)["blk.3.ffn_down.weight.in_sum2"]).ravel()
    name = "model.layers.3.mlp.down_proj.weight"
    weights = np.asarray(pq.open(DATA / "phi35")[name], np.float32)

    def error(report: pq.Report, by: np.ndarray) -> float:
        off = pq.open(report.path)[name].dequantize() - weights
        return float((off.astype(np.float64) ** 2 * by).sum())

    assert error(weighted, columns) < error(best, columns) < error(known, columns)
    assert error(best, np.ones(1)) < error(weighted, np.ones(1))
    assert [file.nbytes for file in best.files[:2]] == [file.nbytes for file in known.files[:2]]


def test_best_quality_of_small_floats_is_refused():
    with pytest.raises(UnsupportedError, match="best"):
        pq.plan(DATA / "phi35", "mlx:mxfp4", quality="best")


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("mlx:7bit", "no preset '7bit'"),
        ("mlx:4bit,group=48", "has groups of 32, 64, 128"),
        ("mlx:mxfp4,group=64", "has groups of 32"),
        ("mlx:bf16,group=64", "has no groups"),
        ("mlx:4bit,context=middle", "no option 'context=middle'"),
        ("mlx:bf16,dtype=fp16", "no option 'dtype=fp16'"),
        ("mlx:4bit,fast", "no option"),
    ],
)
def test_what_mlx_does_not_have_is_refused(target, cause):
    with pytest.raises(UsageError, match=cause):
        pq.plan(DATA / "phi35", target)


@pytest.mark.parametrize(
    "override", ["mlx:*.down_proj.weight=7bit", "mlx:*.nothing=4bit", "mlx:*down*=4bit_g16"]
)
def test_overrides_that_make_no_sense_are_refused(override):
    with pytest.raises(UsageError):
        pq.plan(DATA / "phi35", "mlx:4bit", tensor=override)


@pytest.mark.parametrize(
    "choice",
    [
        {"pure": True}, {"mix": "published"}, {"output_type": "q8_0"}, {"embedding_type": "q8_0"},
        {"split_size": "1G"},
    ],
)  # fmt: skip
def test_what_only_gguf_has_is_refused_where_no_gguf_is_made(choice):
    with pytest.raises(UsageError, match="is for GGUF"):
        pq.plan(DATA / "phi35", "mlx:4bit", **choice)
    assert pq.plan(DATA / "phi35", ["mlx:4bit", "q8_0"], **choice).nbytes


def test_a_quantized_folder_becomes_what_holds_its_codes_and_nothing_less(folder):
    pq.plan(folder, "mlx:8bit")
    with pytest.raises(UnsupportedError, match="holds codes of 4 bits"):
        pq.plan(folder, "mlx:2bit")


def test_large_models_are_split_as_mlx_lm_splits_them(tmp_path, monkeypatch):
    monkeypatch.setattr(mlx, "SHARD", 1 << 20)
    pq.convert(DATA / "phi4mini", "mlx:4bit", tmp_path / "out")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    count = len(shards)
    assert count > 2
    assert shards == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    index = json.loads((tmp_path / "out" / safetensors.INDEX).read_text())
    assert set(index["weight_map"].values()) == set(shards)
    opened = pq.open(tmp_path / "out")
    assert set(opened) == set(pq.open(DATA / "phi4mini"))
    for shard in shards:
        assert (tmp_path / "out" / shard).stat().st_size < (1 << 20) + 65536


def published(layers: int) -> Any:
    """Phi-3.5-mini's shape, with as many layers."""
    config = json.loads((DATA / "phi35" / "config.json").read_text())
    config |= {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064}
    config["rope_scaling"] = None
    return spec_from_config(config)


@pytest.mark.parametrize("layers", (6, 32))
def test_more_bits_go_to_an_eighth_at_either_end_and_every_third_layer(layers):
    packings = assign(published(layers), "mixed_4_6").packings
    high = {
        layer
        for layer in range(layers)
        if packings[f"model.layers.{layer}.mlp.down_proj.weight"].bits == 6
    }
    wanted = {
        6: {2, 5},
        32: {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31},
    }
    assert high == wanted[layers]
    assert packings["lm_head.weight"].bits == 6
    assert packings["model.embed_tokens.weight"].bits == 4


def damaged(folder: Path, tmp_path: Path, change: Any) -> Path:
    path = tmp_path / "damaged"
    shutil.copytree(folder, path)
    config = config_of(path)
    change(config)
    (path / "config.json").write_text(json.dumps(config))
    return path


QKV = "model.layers.0.self_attn.qkv_proj"


@pytest.mark.parametrize(
    ("change", "error", "cause"),
    [
        (lambda q: q.update(group_size=32), FormatError, "do not make"),
        (lambda q: q.update(bits=8), FormatError, "do not make"),
        (lambda q: q.update(bits=3), FormatError, "do not make"),
        (lambda q: q.update({QKV: False}), FormatError, "says that it is not"),
        (lambda q: q.update(group_size=0), UnsupportedError, "does not decode"),
        (lambda q: q.update(group_size=-64), UnsupportedError, "does not decode"),
        (lambda q: q.update(group_size=10**30), UnsupportedError, "does not decode"),
        (lambda q: q.update(bits="4"), UnsupportedError, "does not decode"),
        (lambda q: q.update(bits=True), UnsupportedError, "does not decode"),
        (lambda q: q.update(mode="mxfp4"), UnsupportedError, "does not decode"),
        (lambda q: q.update(mode=["affine"]), UnsupportedError, "does not decode"),
        (lambda q: q.update({QKV: {"bits": 2, "group_size": 64}}), FormatError, "do not make"),
        (lambda q: q.update({QKV: {"bits": 3}}), FormatError, "do not make"),
    ],
)
def test_a_config_that_contradicts_the_planes_is_refused(folder, tmp_path, change, error, cause):
    path = damaged(folder, tmp_path, lambda config: change(config["quantization"]))
    with pytest.raises(error, match=cause):
        pq.open(path)


def test_planes_of_wrong_shapes_are_refused(folder, tmp_path):
    path = tmp_path / "damaged"
    shutil.copytree(folder, path)
    (path / safetensors.INDEX).unlink()
    single = path / safetensors.SINGLE
    arrays = {name: np.array(array) for name, array in safetensors.open_file(single).items()}
    for change in (
        {f"{QKV}.scales": arrays[f"{QKV}.scales"][:, :-1].copy()},
        {f"{QKV}.biases": arrays[f"{QKV}.biases"][:-1].copy()},
        {f"{QKV}.biases": arrays[f"{QKV}.biases"].astype(np.float32)},
        {f"{QKV}.weight": arrays[f"{QKV}.weight"].reshape(-1)},
        {f"{QKV}.scales": None},
    ):
        made = {k: v for k, v in {**arrays, **change}.items() if v is not None}
        safetensors.write(single, made, {"format": "mlx"}, overwrite=True)
        with pytest.raises((FormatError, UnsupportedError), match="qkv_proj"):
            pq.open(path)
