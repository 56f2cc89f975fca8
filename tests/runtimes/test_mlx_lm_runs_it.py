"""mlx-lm loads phiquant's MLX folders, computes what transformers recorded, and packs alike."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_peer as peer
import phiquant as pq
from phiquant.runtimes.mlx_lm import RUNTIME
from places import DATA, FIXTURES

LONGROPE = ("phi35", "phi4mini")
GREEDY = ("select", "function", "chat", "prose")
# Prompts for which each context is right. mlx-lm ignores phi3win's window of 47 tokens.
SHORT = {
    "phi35": (*GREEDY, "eval_short", "eval_edge"),
    "phi4mini": (*GREEDY, "eval_short", "eval_edge"),
    "phi3win": GREEDY,
}


@cache
def reference(fixture: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    facts = json.loads((DATA / fixture / "reference.json").read_text(encoding="utf-8"))
    with np.load(DATA / fixture / "reference.npz") as arrays:
        return facts["prompts"], dict(arrays)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """folder(fixture, preset) gives the path of that MLX folder, made once a session."""
    base = tmp_path_factory.mktemp("mlx")

    def make(fixture: str, preset: str, **choices: Any) -> Path:
        path = base / f"{fixture}-{preset}".replace(",", "-").replace("=", "-")
        if not path.exists():
            pq.convert(DATA / fixture, f"mlx:{preset}", path, **choices)
        return path

    return make


def distance(model: Any, fixture: str, prompt: str) -> float:
    _, arrays = reference(fixture)
    wanted = arrays[f"{prompt}.logits"]
    return float(abs(model.logits(arrays[f"{prompt}.ids"], len(wanted)) - wanted).max())


@pytest.mark.parametrize("fixture", FIXTURES)
def test_bf16_gives_the_recorded_logits_and_greedy_text(folder, fixture):
    facts, arrays = reference(fixture)
    with RUNTIME.load(folder(fixture, "bf16"), context=512, threads=1, exact=True) as model:
        for prompt in SHORT[fixture]:
            # Sums in another order, in float32; measured up to 2e-5. Wrong factors make 0.4 and more.
            assert distance(model, fixture, prompt) < 1e-3, prompt
        for prompt in GREEDY:
            wanted = facts[prompt]["greedy_ids"]
            if fixture == "phi3win":
                wanted = wanted[: 47 - len(arrays[f"{prompt}.ids"])]
            assert model.greedy(arrays[f"{prompt}.ids"], len(wanted)) == wanted, prompt


@pytest.mark.parametrize("fixture", LONGROPE)
def test_the_long_context_is_right_beyond_the_original_one_and_the_short_one_is_not(
    folder, fixture
):
    for preset, right in (("bf16,context=long", True), ("bf16", False)):
        with RUNTIME.load(folder(fixture, preset), context=1024, threads=1, exact=True) as model:
            assert (distance(model, fixture, "eval_long") < 1e-3) == right
            assert (distance(model, fixture, "chat") < 1e-3) == (not right)


def test_the_choice_of_the_context_is_said():
    notes = pq.plan(DATA / "phi35", "mlx:4bit").targets[0].notes
    assert any("up to 512 tokens" in note for note in notes)
    notes = pq.plan(DATA / "phi35", "mlx:4bit,context=long").targets[0].notes
    assert any("beyond 512 tokens" in note for note in notes)
    notes = pq.plan(DATA / "phi3win", "mlx:4bit").targets[0].notes
    assert any("ignores the sliding window" in note for note in notes)


@pytest.mark.parametrize("fixture", LONGROPE)
def test_the_newer_spelling_of_the_config_makes_the_same(folder, fixture, tmp_path):
    source = tmp_path / fixture
    shutil.copytree(DATA / fixture, source)
    (source / "config.transformers5.json").replace(source / "config.json")
    pq.convert(source, "mlx:4bit", tmp_path / "out")
    assert peer.tensors(tmp_path / "out") == peer.tensors(folder(fixture, "4bit"))
    keys = ("rope_theta", "rope_scaling", "partial_rotary_factor", "quantization")
    one = json.loads((tmp_path / "out" / "config.json").read_text())
    other = json.loads((folder(fixture, "4bit") / "config.json").read_text())
    assert {key: one[key] for key in keys} == {key: other[key] for key in keys}
    assert "rope_parameters" not in one


CONVERTED = [
    ("phi35", "4bit", {}),
    ("phi35", "3bit,group=32", {"q_bits": 3, "q_group_size": 32}),
    ("phi4mini", "6bit,group=128", {"q_bits": 6, "q_group_size": 128}),
    ("phi3win", "5bit,group=128", {"q_bits": 5, "q_group_size": 128}),
    ("phi4mini", "2bit", {"q_bits": 2}),
    ("phi3win", "8bit", {"q_bits": 8}),
    ("phi35", "4bit,dtype=fp16", {"dtype": "float16"}),
    ("phi35", "mxfp4", {"q_mode": "mxfp4"}),
    ("phi4mini", "mxfp8", {"q_mode": "mxfp8"}),
    ("phi3win", "nvfp4", {"q_mode": "nvfp4"}),
    *(
        (fixture, mix, {"quant_predicate": mix, "q_group_size": 64})
        for fixture, mix in (
            ("phi35", "mixed_2_6"),
            ("phi4mini", "mixed_3_4"),
            ("phi3win", "mixed_3_6"),
            ("phi35", "mixed_4_6"),
        )
    ),
]


@pytest.mark.parametrize(("fixture", "preset", "settings"), CONVERTED)
def test_every_tensor_is_that_of_mlx_lm_convert(folder, tmp_path, fixture, preset, settings):
    from mlx_lm.convert import convert

    convert(str(DATA / fixture), str(tmp_path / "theirs"), quantize=True, **settings)
    ours = folder(fixture, preset)
    assert peer.tensors(ours) == peer.tensors(tmp_path / "theirs")
    index = json.loads((ours / "model.safetensors.index.json").read_text())
    theirs = json.loads((tmp_path / "theirs" / "model.safetensors.index.json").read_text())
    assert index == theirs
    # Theirs is read as ours is.
    read, other = pq.open(ours).entries, pq.open(tmp_path / "theirs").entries
    assert [(e.name, e.type, e.shape) for e in read.values()] == [
        (other[name].name, other[name].type, other[name].shape) for name in read
    ]


@pytest.mark.parametrize(("kind", "said"), [("f16", "float16"), ("f32", None), ("f32", "bfloat16")])
def test_sources_of_other_types_come_out_as_from_mlx_lm(tmp_path, kind, said):
    from mlx_lm.convert import convert

    source = tmp_path / "source"
    shutil.copytree(DATA / "phi3win", source)
    opened = pq.open(DATA / "phi3win")
    # Float32 weights that bfloat16 does not hold.
    wide = {name: np.asarray(opened[name], np.float32) * np.float32(1 / 3) for name in opened}
    arrays = {name: array.astype(peer.TYPES[kind][0]) for name, array in wide.items()}
    pq.safetensors.write(source / "model.safetensors", arrays, {"format": "pt"}, overwrite=True)
    config = json.loads((source / "config.json").read_text())
    for key in ("torch_dtype", "dtype"):
        config.pop(key, None)
    if said is not None:
        config["torch_dtype"] = said
    (source / "config.json").write_text(json.dumps(config))
    pq.convert(source, "mlx:4bit", tmp_path / "ours")
    convert(str(source), str(tmp_path / "theirs"), quantize=True)
    assert peer.tensors(tmp_path / "ours") == peer.tensors(tmp_path / "theirs")


def test_a_folder_whose_groups_are_null_is_read(tmp_path):
    from mlx_lm.convert import convert

    theirs = tmp_path / "theirs"
    convert(str(DATA / "phi3win"), str(theirs), quantize=True, quant_predicate="mixed_3_6")
    settings = json.loads((theirs / "config.json").read_text())["quantization"]
    assert settings["lm_head"]["group_size"] is None
    assert pq.open(theirs)["lm_head.weight"].codec.name == "int6_asym_g64,rule=mlx"


@pytest.mark.parametrize(("fixture", "preset", "settings"), CONVERTED)
def test_mlx_lm_gives_the_logits_of_its_own_conversion_s_weights(folder, fixture, preset, settings):
    """The weights that pq.open decodes, in phiquant's own forward pass, against mlx-lm's run."""
    from phiquant.reference import Decoder

    path = folder(fixture, preset)
    ids = reference(fixture)[1]["chat.ids"]
    ours = Decoder(pq.open(path), threads=1)(ids[None], last=len(ids))[0]
    with RUNTIME.load(path, context=64, threads=1, exact=True) as model:
        theirs = model.logits(ids, len(ids))
    # The same weights in float32; measured up to 2e-5.
    assert abs(ours - theirs).max() < 1e-3


def test_mlx_lm_generates_text(folder):
    from mlx_lm import generate, load

    model, tokenizer = load(str(folder("phi35", "8bit")))
    text = generate(
        model, tokenizer, prompt="The SELECT statement retrieves rows from", max_tokens=8
    )
    assert text.strip()
