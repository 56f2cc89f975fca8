"""transformers loads phiquant's Hugging Face folders, with the weights that pq.open decodes."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import hf_peer as peer
import phiquant as pq
from phiquant.cli.entry import run
from phiquant.errors import FormatError, UnsupportedError, UsageError
from phiquant.evaluate import verify
from phiquant.reference import Decoder
from phiquant.runtimes.transformers import RUNTIME
from phiquant.targets.safetensors_files import StoredTensor, planned_files, shards
from places import DATA, FIXTURES

torch = peer.torch

# torch, transformers and their friends warn of this and that.
pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def prompt(fixture: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(DATA / fixture / "reference.npz") as arrays:
        return arrays[f"{name}.ids"], arrays[f"{name}.logits"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """folder(fixture, preset) gives the path of that folder, made once a session."""
    base = tmp_path_factory.mktemp("hf")

    def make(fixture: str, preset: str, **choices: Any) -> Path:
        path = base / f"{fixture}-{preset}{len(choices)}".replace(",", "-").replace("=", "-")
        if not path.exists():
            pq.convert(DATA / fixture, f"hf:{preset}", path, **choices)
        return path

    return make


# Every preset, every option, every fixture. phi3win's rows are no multiples of 128.
FOLDERS = [
    ("phi35", "w4a16"),
    ("phi35", "w4a16,asym,group=32"),
    ("phi35", "w8a16,asym,group=channel"),
    ("phi35", "w2a16,asym,group=16"),
    ("phi35", "w8a8"),
    ("phi4mini", "w4a16,asym"),
    ("phi4mini", "w8a16"),
    ("phi4mini", "w3a16,group=32"),
    ("phi4mini", "w4a16,group=channel,dtype=fp32"),
    ("phi4mini", "w8a8,dtype=fp16"),
    ("phi4mini", "w3a16,asym,group=32"),
    ("phi35", "fp8"),
    ("phi35", "mxfp4"),
    ("phi35", "nvfp4"),
    ("phi3win", "nvfp4,dtype=fp32"),
    ("phi3win", "mxfp4,dtype=fp32"),
    ("phi4mini", "fp8,dtype=fp32"),
    ("phi3win", "w4a16,group=64,sym"),
    ("phi3win", "w2a16,group=32"),
    ("phi3win", "w8a8,dtype=fp32"),
]


@pytest.mark.parametrize(("fixture", "preset"), FOLDERS)
def test_transformers_has_the_weights_that_pq_open_decodes(folder, fixture, preset):
    path = folder(fixture, preset)
    checkpoint = pq.open(path)
    assert checkpoint.format == "compressed-tensors"
    with RUNTIME.load(path, context=64, threads=1, exact=True) as model:
        theirs = dict(model._model.named_parameters())
        quantized = 0
        for name in checkpoint:
            ours = checkpoint[name]
            if isinstance(ours, pq.QuantizedTensor):
                quantized += 1
                # compressed-tensors multiplies in the scales' type: one rounding of ours.
                stored = {"bfloat16": ml_dtypes.bfloat16}.get(ours.codec.affine.scale)
                ours = ours.dequantize().astype(stored or ours.codec.affine.scale)
            same = theirs[name].detach().numpy() == np.asarray(ours, np.float32)
            assert same.all(), f"{name}: {np.count_nonzero(~same)} differ"
    layers = json.loads((path / "config.json").read_text())["num_hidden_layers"]
    assert quantized == 4 * layers


@pytest.mark.parametrize(("fixture", "preset"), FOLDERS)
def test_transformers_gives_the_logits_of_the_decoded_weights(folder, fixture, preset):
    """phiquant's own forward pass in float32, against transformers'."""
    path = folder(fixture, preset)
    ids, _ = prompt(fixture, "chat")
    ours = Decoder(pq.open(path), threads=1)(ids[None], last=len(ids))[0]
    with RUNTIME.load(path, context=64, threads=1, exact=True) as model:
        theirs = model.logits(ids, len(ids))
    # Weights differ by a rounding to 8 bits where scales are bfloat16, to 11 where float16.
    bound = {"fp32": 2e-4, "fp16": 0.02}.get(preset.rpartition("dtype=")[2], 0.15)
    if preset.startswith("nvfp4"):
        bound = 0.15  # decoded to bfloat16, whatever the scales
    assert abs(ours - theirs).max() < bound


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("preset", ["bf16", "fp32"])
def test_floats_give_the_recorded_logits(folder, fixture, preset):
    path = folder(fixture, preset)
    for name in ("chat", "eval_short"):
        ids, wanted = prompt(fixture, name)
        with RUNTIME.load(path, context=64, threads=1, exact=True) as model:
            assert abs(model.logits(ids, len(wanted)) - wanted).max() < 2e-4


def test_float16_is_what_is_asked_for(folder):
    path = folder("phi35", "fp16")
    original = pq.open(DATA / "phi35")
    for name, values in pq.open(path).items():
        assert values.dtype == np.float16
        assert (values == np.asarray(original[name], np.float32).astype(np.float16)).all()


@pytest.mark.parametrize("preset", ["w4a16,group=32", "w8a8", "fp8", "mxfp4", "nvfp4"])
def test_plain_from_pretrained_runs_it_as_published(folder, preset):
    """Without a word on quantization; and 8-bit activations where the scheme has them."""
    from transformers import AutoModelForCausalLM

    path = folder("phi35", preset)
    ids, wanted = prompt("phi35", "chat")
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        found = model(torch.from_numpy(ids[None])).logits[0].float().numpy()[-len(wanted) :]
    assert abs(found - wanted).mean() < 0.05 * abs(wanted).max()


def test_the_hint_s_command_runs(tmp_path):
    out = tmp_path / "a folder's name"
    report = pq.convert(DATA / "phi35", "hf:w4a16,group=32", out)
    words = report.hints[0].replace("python -c", f"{sys.executable} -W ignore -c", 1)
    done = subprocess.run(words, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Hello")


def test_best_quality_is_nearer_to_the_source(folder):
    ids, wanted = prompt("phi35", "chat")
    off = []
    for choices in ({}, {"quality": "best"}):
        path = folder("phi35", "w4a16,asym,group=64", **choices)
        with RUNTIME.load(path, context=64, threads=1, exact=True) as model:
            off.append(((model.logits(ids, len(wanted)) - wanted) ** 2).mean())
    assert off[1] < off[0]
    assert "searched for" in (path / "README.md").read_text()
    with pytest.raises(UnsupportedError, match="best"):
        pq.plan(DATA / "phi35", "hf:w8a8", quality="best")


# Mixed schemes ---------------------------------------------------------------------------------


def test_several_schemes_in_one_folder(folder):
    path = folder(
        "phi35",
        "w4a16,group=64",
        tensor=["hf:*.down_proj.weight=w8a8", "hf:*.0.*=bf16", "hf:*.1.*qkv*=int8_sym_g32"],
    )
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    kinds = [
        (group["format"], group["weights"]["num_bits"], len(group["targets"]))
        for group in config["config_groups"].values()
    ]
    assert sorted(kinds) == [
        ("int-quantized", 8, 6),
        ("pack-quantized", 4, 14),
        ("pack-quantized", 8, 1),
    ]
    assert len([name for name in config["ignore"] if ".layers.0." in name]) == 3
    ids, _ = prompt("phi35", "chat")
    ours = Decoder(pq.open(path), threads=1)(ids[None], last=len(ids))[0]
    with RUNTIME.load(path, context=64, threads=1, exact=True) as model:
        theirs = model.logits(ids, len(ids))
    # Activations of down_proj are rounded to 8 bits by transformers.
    assert abs(ours - theirs).mean() < 0.1


def test_a_quantized_head(folder):
    path = folder("phi35", "w4a16", tensor=["hf:lm_head.weight=w8a16"])
    assert pq.open(path)["lm_head.weight"].codec.name == "int8_sym_g128,rule=ct"
    ids, _ = prompt("phi35", "chat")
    ours = Decoder(pq.open(path), threads=1)(ids[None], last=len(ids))[0]
    with RUNTIME.load(path, context=64, threads=1, exact=True) as model:
        assert abs(model.logits(ids, len(ids)) - ours).max() < 0.15


# What compressed-tensors itself writes ---------------------------------------------------------


def theirs(source: Path, out: Path, preset: Any, format: str | None = None) -> Any:
    """A folder made by compressed-tensors' own presets (or of a scheme); gives its config."""
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
    from safetensors.torch import save_file

    how = preset_name_to_scheme(preset, ["Linear"]) if isinstance(preset, str) else preset
    formats = {
        "W8A8": "int-quantized",
        "FP8_DYNAMIC": "float-quantized",
        "MXFP4A16": "mxfp4-pack-quantized",
        "NVFP4A16": "nvfp4-pack-quantized",
    }
    format = format or formats.get(preset, "pack-quantized")
    original = pq.open(source)
    tensors = {}
    for name in original:
        if name.endswith("_proj.weight"):
            made = peer.compressed(original[name], how, format)
            tensors |= {f"{name.removesuffix('weight')}{part}": made[part] for part in made}
        else:
            tensors[name] = peer.to_torch(original[name])
    out.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "model.safetensors")
    settings = QuantizationConfig(
        config_groups={"group_0": how},
        format=format,
        ignore=["lm_head"],
        quantization_status="compressed",
    )
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = settings.model_dump(mode="json")
    (out / "config.json").write_text(json.dumps(config))
    return settings


PUBLISHED = [
    ("phi35", "W4A16", "w4a16"),
    ("phi4mini", "W4A16_ASYM", "w4a16,asym"),
    ("phi35", "W8A16", "w8a16"),
    ("phi4mini", "W3A16", "w3a16"),
    ("phi35", "W8A8", "w8a8"),
    ("phi4mini", "FP8_DYNAMIC", "fp8"),
    ("phi35", "MXFP4A16", "mxfp4"),
    ("phi35", "NVFP4A16", "nvfp4"),
]


@pytest.mark.parametrize(("fixture", "preset", "ours"), PUBLISHED)
def test_every_tensor_is_that_of_compressed_tensors(folder, tmp_path, fixture, preset, ours):
    settings = theirs(DATA / fixture, tmp_path / "theirs", preset)
    made = pq.safetensors.open_folder(folder(fixture, ours))
    wanted = pq.safetensors.open_folder(tmp_path / "theirs")
    assert {name: entry.shape for name, entry in made.entries.items()} == {
        name: entry.shape for name, entry in wanted.entries.items()
    }
    for name in wanted:
        assert made[name].dtype == wanted[name].dtype, name
        assert made[name].tobytes() == wanted[name].tobytes(), name
    config = json.loads((folder(fixture, ours) / "config.json").read_text())
    read = type(settings).model_validate(config["quantization_config"])
    expected = settings.model_copy(deep=True)
    expected.config_groups["group_0"].format = settings.format
    for group in (read.config_groups["group_0"], expected.config_groups["group_0"]):
        for args in (group.weights, group.input_activations):
            if args is not None:
                args.observer = None  # how llm-compressor would have looked for extremes
    assert read.model_dump() == expected.model_dump()


@pytest.mark.parametrize(("fixture", "preset", "ours"), PUBLISHED)
def test_folders_of_compressed_tensors_are_read(folder, tmp_path, fixture, preset, ours):
    theirs(DATA / fixture, tmp_path / "theirs", preset)
    opened, same = pq.open(tmp_path / "theirs"), pq.open(folder(fixture, ours))
    assert {n: e.type for n, e in opened.entries.items()} == {
        n: e.type for n, e in same.entries.items()
    }
    ids, _ = prompt(fixture, "chat")
    found = [Decoder(one, threads=1)(ids[None], last=4) for one in (opened, same)]
    assert (found[0] == found[1]).all()


def test_signed_bytes_with_zero_points_are_read(tmp_path):
    """As naive compressors leave them: nothing packed."""
    how = peer.scheme(8, False, 64)
    path = tmp_path / "theirs"
    theirs(DATA / "phi35", path, how, "int-quantized")
    opened, original = pq.open(path), pq.open(DATA / "phi35")
    name = "model.layers.2.mlp.down_proj.weight"
    assert opened.entries[name].type == "int8_asym_g64,rule=ct,layout=bytes"
    same = pq.quantize(original[name], "int8_asym_g64,rule=ct")
    assert (opened[name].dequantize() == same.dequantize()).all()
    assert (opened[name].zero_points == same.zero_points).all()


# What the folder holds -------------------------------------------------------------------------


def test_config_and_card_say_what_is_there(folder):
    path = folder("phi4mini", "w4a16,asym")
    config = json.loads((path / "config.json").read_text())
    source = json.loads((DATA / "phi4mini" / "config.json").read_text())
    added = {"quantization_config", "dtype", "torch_dtype"}
    assert {k: v for k, v in config.items() if k not in added} == {
        k: v for k, v in source.items() if k not in added
    }
    group = config["quantization_config"]["config_groups"]["group_0"]
    assert group["weights"]["group_size"] == 128
    assert not group["weights"]["symmetric"]
    card = (path / "README.md").read_text()
    assert "phiquant convert --to hf:w4a16,asym" in card
    assert "16 x w4a16_asym_g128" in card
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (path / name).read_bytes() == (DATA / "phi4mini" / name).read_bytes()


def test_large_models_are_split_with_an_index():
    from phiquant.plan import PlannedTensor

    rows = [
        [StoredTensor("BF16", PlannedTensor(f"t{n}", f"t{n}", "bf16", (1 << 29,), 0, 1 << 30))]
        for n in range(11)
    ]
    files, index = planned_files(shards(rows), {"format": "pt"})
    assert [len(file.tensors) for file in files] == [5, 5, 1]
    assert files[2].name == "model-00003-of-00003.safetensors"
    made = json.loads(index)
    assert made["metadata"]["total_size"] == 11 << 30
    assert made["weight_map"]["t10"] == files[2].name


@pytest.mark.parametrize(
    ("fixture", "target", "words"),
    [
        (
            "phi3win",
            "hf:w4a16",
            "rows of 320 are no multiple of the group of 128.*16|32|64|channel",
        ),
        ("phi35", "hf:w4a16,group=48", "groups of 16, 32, 64, 128 and channel"),
        ("phi35", "hf:w8a8,group=32", "has no choice of groups"),
        ("phi35", "hf:bf16,sym", "has no choice of groups"),
        ("phi35", "hf:bf16,dtype=fp16", "no option 'dtype=fp16'"),
        ("phi35", "hf:w4a16,sym,asym", "no option 'sym'"),
        ("phi35", "hf:w4a16,bits=3", "no option 'bits=3'"),
        ("phi35", "hf:w5a16", "hf has no preset 'w5a16'.*hf:w8a16"),
        ("phi35", "hf:nvfp4,group=16", "has no choice of groups"),
    ],
)
def test_what_makes_no_sense_is_refused(fixture, target, words):
    with pytest.raises(UsageError, match=words):
        pq.plan(DATA / fixture, target)


@pytest.mark.parametrize(
    ("override", "words"),
    [("hf:*nil*=w8a16", "matches no linear layer"), ("hf:*=w9a16", "Did you mean w")],
)
def test_overrides_that_make_no_sense_are_refused(override, words):
    with pytest.raises(UsageError, match=words):
        pq.plan(DATA / "phi35", "hf:w4a16", tensor=override)


# Reading ---------------------------------------------------------------------------------------


def test_verify_and_eval_take_the_folder(folder, capsys):
    path = folder("phi35", "w4a16,asym,group=32")
    result = verify(path, DATA / "phi35", threads=1)
    assert result.passed, str(result)
    text = DATA / "eval.txt"
    command = ["eval", str(path), "--against", str(DATA / "phi35"), "--text", str(text)]
    assert run([*command, "--tokens", "1024", "--repetition", "0", "--no-cache", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert 0 < row["mean_kld"] < 0.01


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("weight_scale", "has no weight_scale"),
        ("weight_shape", "has no weight_shape"),
        ("weight_packed", "matrix without codes"),
    ],
)
def test_incomplete_folders_are_refused(folder, tmp_path, part, words):
    path = folder("phi35", "w4a16")
    name = f"model.layers.3.mlp.down_proj.{part}"
    opened = pq.safetensors.open_folder(path)
    kept = {key: opened[key] for key in opened if key != name}
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    pq.safetensors.write(tmp_path / "model.safetensors", kept)
    with pytest.raises(FormatError, match=words):
        pq.open(tmp_path)
