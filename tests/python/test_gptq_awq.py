"""GPTQ's and AWQ's layouts, against plain NumPy decoders and what gptqmodel made of the folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiquant as pq
from phiquant.errors import FormatError, ShapeError, UnsupportedError, UsageError
from phiquant.reference import Decoder
from places import DATA, GOLDEN

RECORDED = json.loads((GOLDEN / "gptqmodel.json").read_text())["folders"]

# Place of the nibbles of AutoAWQ's words (awq/modules/linear/gemm.py).
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def fields(words: np.ndarray, bits: int) -> np.ndarray:
    """Fields of a dense stream of bits along the first axis of int32 words, low bits first."""
    single = (words.view(np.uint32)[:, None] >> np.arange(32, dtype=np.uint32)[:, None]) & 1
    stream = single.reshape(-1, bits, *words.shape[1:])
    weights = (1 << np.arange(bits)).reshape(1, bits, *[1] * (words.ndim - 1))
    return (stream * weights).sum(1).astype(np.int64)


def decoded(
    qweight: np.ndarray, qzeros: np.ndarray, scales: np.ndarray, bits: int, layout: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [K, N], zero points and scales [groups, N]."""
    if layout == "awq":
        wide = []
        for words in (qweight, qzeros):
            nibbles = words.view(np.uint32)[:, :, None] >> (4 * np.arange(8, dtype=np.uint32)) & 15
            ordered = np.empty_like(nibbles)
            ordered[:, :, AWQ_ORDER] = nibbles
            wide.append(ordered.reshape(len(words), -1).astype(np.int64))
        return wide[0], wide[1], scales
    if layout == "gptq_v1" and bits != 3:
        # As loaders do: one added to every field of whole words.
        one = sum(1 << bits * k for k in range(32 // bits))
        qzeros = (qzeros.view(np.uint32) + np.uint32(one)).view(np.int32)
    codes = fields(qweight, bits)
    zeros = fields(np.ascontiguousarray(qzeros.T), bits).T
    if layout == "gptq_v1" and bits == 3:
        zeros = (zeros + 1) & 7
    return codes, zeros, scales


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    w = random.standard_t(4, size=(rows, columns)).astype(np.float32) * 0.02
    w[1] = abs(w[1])  # zero points at the range's ends
    w[2] = -abs(w[2])
    w[5] = 0
    return w


LAYOUTS = [
    *((bits, sign, "gptq") for bits in (2, 3, 4, 8) for sign in ("sym", "asym")),
    *((bits, sign, "gptq_v1") for bits in (2, 3, 4, 8) for sign in ("sym", "asym")),
    (4, "sym", "awq"),
    (4, "asym", "awq"),
]


@pytest.mark.parametrize(("bits", "sign", "layout"), LAYOUTS)
@pytest.mark.parametrize(("rows", "columns", "group"), [(64, 128, 32), (416, 320, 64), (96, 64, 0)])
def test_planes_are_what_the_formats_say(bits, sign, layout, rows, columns, group):
    length = f"g{group}" if group else "channel"
    name = f"int{bits}_{sign}_{length},rule=ct"
    w = matrix(rows, columns)
    made = pq.quantize(w, f"{name},layout={layout}", threads=2)
    plain = pq.quantize(w, f"{name},scales=f16,layout=openvino")
    assert (made.codes == plain.codes).all()
    assert (made.scales == plain.scales).all()
    assert (made.zero_points == plain.zero_points).all()
    groups = columns // group if group else 1
    shape = (columns, rows * bits // 32) if layout == "awq" else (columns * bits // 32, rows)
    codes, zeros, scales = decoded(
        made.planes[0].view(np.int32).reshape(shape),
        made.planes[2].view(np.int32).reshape(groups, rows * bits // 32),
        made.planes[1].view(np.float16).reshape(groups, rows),
        bits,
        layout,
    )
    assert (plain.codes == codes.T).all()
    assert (plain.zero_points == zeros.T).all()
    each = np.repeat(np.arange(groups), columns // groups)
    values = (codes - zeros[each]).astype(np.float32) * scales[each].astype(np.float32)
    assert (made.dequantize(threads=2) == values.T).all()


def test_zero_points_of_zero_run_over_in_the_first_version():
    """The whole word carries: what gptqmodel subtracts when it writes, it adds when it loads."""
    w = -matrix(32, 64)  # rows above zero have the zero point 0
    made = pq.quantize(w, "int4_asym_g32,rule=ct,layout=gptq_v1")
    zeros = made.zero_points
    assert (zeros[2] == 0).all()
    words = made.planes[2].view("<u4").reshape(2, 4)
    true = pq.quantize(w, "int4_asym_g32,rule=ct,layout=gptq").planes[2].view("<u4").reshape(2, 4)
    assert (words == true - np.uint32(0x11111111)).all()


@pytest.mark.parametrize(
    ("rows", "columns", "codec"),
    [
        (20, 64, "int4_sym_g32,layout=gptq"),
        (48, 64, "int3_sym_g32,layout=gptq"),
        (64, 80, "int4_sym_g16,layout=gptq"),
        (12, 64, "int4_asym_g32,layout=awq"),
    ],
)
def test_matrices_that_do_not_fill_words_are_refused(rows, columns, codec):
    with pytest.raises(ShapeError, match="32"):
        pq.quantize(np.ones((rows, columns), np.float32), codec)


@pytest.mark.parametrize("codec", ["int8_asym_g32,layout=awq", "int5_sym_g32,layout=gptq"])
def test_layouts_of_other_bits_do_not_exist(codec):
    with pytest.raises(UsageError, match="no codec"):
        pq.quantize(np.ones((32, 32), np.float32), codec)


# Folders ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """folder(fixture, preset) gives the path of that folder, made once a session."""
    base = tmp_path_factory.mktemp("gptq")

    @cache
    def make(fixture: str, preset: str) -> Path:
        path = base / f"{fixture}-{preset}".replace(",", "-").replace("=", "-")
        pq.convert(DATA / fixture, f"hf:{preset}", path)
        return path

    return make


@pytest.mark.parametrize("which", RECORDED)
def test_gptqmodel_decodes_the_weights_that_pq_open_decodes(folder, which):
    checkpoint = pq.open(folder(*which.split(" ")))
    wanted = RECORDED[which]["weights"]
    quantized = [n for n, e in checkpoint.entries.items() if e.planes]
    assert {name.removesuffix(".weight") for name in quantized} == set(wanted)
    for name in quantized:
        # gptqmodel multiplies in float16: one rounding of ours.
        values = checkpoint[name].dequantize().astype(np.float16)
        digest = hashlib.sha256(values.tobytes()).hexdigest()[:16]
        assert digest == wanted[name.removesuffix(".weight")], name


@pytest.mark.parametrize("which", RECORDED)
def test_gptqmodel_gives_the_logits_of_the_decoded_weights(folder, which):
    fixture, preset = which.split(" ")
    with np.load(DATA / fixture / "reference.npz") as arrays:
        ids = arrays["chat.ids"]
    ours = Decoder(pq.open(folder(fixture, preset)), threads=1)(ids[None], last=4)[0][:, ::50]
    theirs = np.array(RECORDED[which]["logits"])
    # It computes in float16.
    assert abs(ours - theirs).max() < 0.05 * max(1.0, abs(theirs).max())


def test_the_folder_says_what_it_is(folder):
    path = folder("phi35", "gptq")
    config = json.loads((path / "config.json").read_text())
    found = config["quantization_config"]
    assert (found["quant_method"], found["checkpoint_format"], found["sym"]) == (
        "gptq",
        "gptq",
        True,
    )
    assert config["dtype"] == "float16"
    assert "GPTQ itself was not run" in (path / "README.md").read_text()
    plan = pq.plan(DATA / "phi35", "hf:gptq,asym")
    assert any("calibration is not carried out" in note for note in plan.targets[0].notes)
    found = json.loads((folder("phi35", "gptq,asym,group=32") / "config.json").read_text())
    assert found["quantization_config"]["checkpoint_format"] == "gptq_v2"
    found = json.loads((folder("phi35", "awq") / "config.json").read_text())
    assert found["quantization_config"]["version"] == "gemm"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("hf:gptq,asym,format=v1", "cannot hold zero points of 0"),
        ("hf:gptq,bits=5", "no option 'bits=5'"),
        ("hf:awq,bits=8", "no option 'bits=8'"),
        ("hf:awq,format=v1", "no option 'format=v1'"),
        ("hf:gptq,dtype=int8", "no option 'dtype=int8'"),
    ],
)
def test_what_makes_no_sense_is_refused(target, words):
    with pytest.raises(UsageError, match=words):
        pq.plan(DATA / "phi35", target)


def test_layers_cannot_differ():
    with pytest.raises(UsageError, match="all linear layers alike"):
        pq.plan(DATA / "phi35", "hf:gptq", tensor=["hf:*.down_proj.weight=bf16"])


# Reading what others publish -------------------------------------------------------------------

MODULE = "model.layers.1.mlp.down_proj"


def changed(source: Path, out: Path, change: Any, settings: dict[str, Any] | None = None) -> Path:
    """A copy of a folder whose tensors `change` has changed, and whose settings are others."""
    out.mkdir()
    opened = pq.safetensors.open_folder(source)
    tensors = {name: np.array(opened[name]) for name in opened}
    change(tensors)
    pq.safetensors.write(out / "model.safetensors", tensors)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] |= settings or {}
    (out / "config.json").write_text(json.dumps(config))
    return out


def put(part: str, value: Any) -> Any:
    """Replaces a tensor of one matrix, or changes it by a function; None takes it away."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        name = f"{MODULE}.{part}"
        old = tensors.pop(name)
        new = value(old) if callable(value) else value
        if new is not None:
            tensors[name] = np.ascontiguousarray(new)

    return change


def test_settings_beside_the_config_are_read(folder, tmp_path):
    """As AutoGPTQ left them before transformers knew of quantization."""
    source, old = folder("phi35", "gptq"), tmp_path / "old"
    shutil.copytree(source, old)
    config = json.loads((source / "config.json").read_text())
    settings = config.pop("quantization_config")
    (old / "config.json").write_text(json.dumps(config))
    kept = {key: settings[key] for key in ("bits", "group_size", "desc_act", "sym")}
    (old / "quantize_config.json").write_text(json.dumps(kept))
    opened, same = pq.open(old), pq.open(source)
    assert opened.format == "gptq"
    assert {n: e.type for n, e in opened.entries.items()} == {
        n: e.type for n, e in same.entries.items()
    }


@pytest.mark.parametrize("preset", ["gptq,asym,group=32", "gptq,bits=3,group=32", "awq"])
def test_an_index_of_groups_is_not_needed_nor_settings_right(folder, tmp_path, preset):
    """Some tools leave it out, or at zeros; bits and groups are those of the shapes."""
    source = folder("phi4mini" if "bits=3" in preset else "phi35", preset)

    def drop(tensors: dict[str, np.ndarray]) -> None:
        for name in [n for n in tensors if n.endswith(".g_idx")]:
            del tensors[name]

    found = pq.open(changed(source, tmp_path / "f", drop, {"bits": 4, "sym": True}))
    wanted = pq.open(source)
    assert {n: e.type for n, e in found.entries.items()} == {
        n: e.type for n, e in wanted.entries.items()
    }
    name = f"{MODULE}.weight"
    assert (found[name].dequantize() == wanted[name].dequantize()).all()


def test_one_version_is_read_as_the_other(folder, tmp_path):
    source = folder("phi35", "gptq,asym,group=32")

    def lower(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            if name.endswith(".qzeros"):
                tensors[name] = (tensors[name].view(np.uint32) - np.uint32(0x11111111)).view("i4")

    found = pq.open(changed(source, tmp_path / "v1", lower, {"checkpoint_format": "gptq"}))
    assert found.entries[f"{MODULE}.weight"].type.endswith("layout=gptq_v1")
    wanted = pq.open(source)
    for name in (n for n, e in wanted.entries.items() if e.planes):
        assert (found[name].dequantize() == wanted[name].dequantize()).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("scales", None), "has no scales"),
        (put("qzeros", None), "has no qzeros"),
        (put("qweight", None), "matrix without codes"),
        (put("scales", lambda old: old[:, :-8]), "shapes"),
        (put("scales", lambda old: old.astype(np.int16)), "shapes"),
        (put("qzeros", lambda old: old[:-1]), "shapes"),
        (put("qweight", lambda old: old[:-1]), "shapes"),
        (put("qweight", lambda old: old.view(np.float32)), "shapes"),
        (put("qweight", lambda old: old.reshape(-1)), "shapes"),
        (put("g_idx", lambda old: old[:-1]), "columns"),
        (put("g_idx", lambda old: old.astype(np.int64)), "columns"),
    ],
)
def test_damaged_folders_are_refused(folder, tmp_path, change, words):
    with pytest.raises(FormatError, match=words) as caught:
        pq.open(changed(folder("phi35", "gptq,group=32"), tmp_path / "bad", change))
    assert MODULE in str(caught.value)


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (put("g_idx", lambda old: old[::-1]), {"desc_act": True}, "act-order"),
        (lambda tensors: None, {"checkpoint_format": "marlin"}, "layout 'marlin'"),
        (lambda tensors: None, {"checkpoint_format": "m" * 5000}, "layout 'm{40}'"),
        (lambda tensors: None, {"quant_method": "awq", "version": "gemv"}, "layout 'gemv'"),
    ],
)
def test_what_is_not_decoded_is_refused(folder, tmp_path, change, settings, words):
    with pytest.raises(UnsupportedError, match=words):
        pq.open(changed(folder("phi35", "gptq,group=32"), tmp_path / "bad", change, settings))


def test_any_shapes_and_types_are_read_or_refused(tmp_path):
    random = np.random.default_rng(5)
    types = [np.int32, np.int32, np.float16, np.float32, np.int64, np.int8]
    read = 0
    for number in range(100):
        method = random.choice(["gptq", "gptq_v2", "awq"])
        tensors = {
            "a.qweight": np.zeros((8, 64) if method != "awq" else (64, 8), np.int32),
            "a.qzeros": np.zeros((2, 8), np.int32),
            "a.scales": np.ones((2, 64), np.float16),
            "a.g_idx": (np.arange(64) // 32).astype(np.int32),
        }
        for _ in range(random.integers(0, 3)):
            name = random.choice(list(tensors))
            shape = random.choice([1, 2, 4, 8, 12, 16, 32, 64], size=random.integers(0, 4))
            tensors[name] = np.zeros(tuple(shape), types[random.integers(len(types))])
        folder = tmp_path / str(number)
        folder.mkdir()
        settings = {"quant_method": method[:4] if method != "awq" else "awq"}
        if method != "awq":
            settings["checkpoint_format"] = method
        (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
        ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
        pq.safetensors.write(folder / "model.safetensors", dict(ordered))
        try:
            checkpoint = pq.open(folder)
        except (FormatError, UnsupportedError):
            continue
        read += 1
        tensor = checkpoint["a.weight"]
        assert tensor.dequantize().shape == tensor.shape
    assert 20 < read < 90
