"""ONNX folders in ONNX Runtime and ONNX Runtime GenAI, beside transformers' recorded logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiquant as pq
from onnx_peer import QuantType, Session, generated, og, quantize_dynamic
from phiquant.reference import Decoder
from places import DATA, GOLDEN

FIXTURES = ("phi35", "phi4mini", "phi3win")
Convert = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """folder(fixture, target) gives the converted folder, made once."""
    root = tmp_path_factory.mktemp("onnx")

    def make(fixture: str, target: str, **options: Any) -> Path:
        words = "-".join([fixture, target.replace(":", "-").replace(",", "-"), *options.values()])
        path = root / words
        if not path.exists():
            pq.convert(DATA / fixture, target, path, **options)
        return path

    return make


def prompts(fixture: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    recorded = np.load(DATA / fixture / "reference.npz")
    names = sorted({name.split(".")[0] for name in recorded.files})
    return {name: (recorded[f"{name}.ids"], recorded[f"{name}.logits"]) for name in names}


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("target", ["onnx:fp32", "onnx:fp32,ep=dml"])
def test_float32_logits_are_those_of_transformers(
    folder: Convert, fixture: str, target: str
) -> None:
    """Of whole prompts, also those longer than the original context and than the window."""
    session = Session(folder(fixture, target))
    for name, (ids, wanted) in prompts(fixture).items():
        session.forget()
        found = session.feed(ids)[-len(wanted) :]
        assert np.abs(found - wanted).max() < 1e-4, name


@pytest.mark.parametrize("fixture", FIXTURES)
def test_float32_logits_are_the_same_token_by_token(folder: Convert, fixture: str) -> None:
    """Below the original context: across it, the cached keys have the short factors' rotation."""
    session = Session(folder(fixture, "onnx:fp32"))
    ids, wanted = prompts(fixture)["eval_short"]
    begin = len(ids) - len(wanted) + 8
    found = [session.feed(ids[:begin])[-8:]]
    found += [session.feed(ids[at : at + 1]) for at in range(begin, len(ids))]
    assert np.abs(np.concatenate(found) - wanted).max() < 1e-4


@pytest.mark.parametrize("fixture", FIXTURES)
def test_float16_logits_are_within_a_thousandth(folder: Convert, fixture: str) -> None:
    """Of their norm: 11 bits of every activation, over a few layers."""
    session = Session(folder(fixture, "onnx:fp16"))
    for name, (ids, wanted) in prompts(fixture).items():
        session.forget()
        assert relative(session.feed(ids)[-len(wanted) :], wanted) < 1.5e-3, name


# Every option, in combinations that share graphs as little as possible, and how far the logits may
# be from those of the folder's own weights in float32: int8 activations (accuracy 4) lose half a
# percent, float16 ones less.
EVERY = [
    ("onnx:int4", 0.02),
    ("onnx:int4,asym", 0.02),
    ("onnx:int8", 0.02),
    ("onnx:int8,asym,block=64", 0.02),
    *((f"onnx:int4,accuracy={level}", 1e-4) for level in (0, 1)),
    *((f"onnx:int4,accuracy={level}", 0.02) for level in (2, 3)),
    *((f"onnx:int4,block={block},accuracy=0", 1e-4) for block in (16, 64, 128, 256)),
    ("onnx:int8,block=256,accuracy=0", 1e-4),
    ("onnx:int4,asym,block=16,scales=fp16,accuracy=0", 1e-4),
    ("onnx:int4,scales=fp32,accuracy=0", 1e-4),
    ("onnx:int8,scales=fp16,accuracy=0", 1e-4),
    ("onnx:int4,mixed,accuracy=0", 1e-4),
    ("onnx:int4,mixed,head=int4,accuracy=0", 1e-4),
    ("onnx:int4,down=int8,head=int8,accuracy=0", 1e-4),
    ("onnx:int8,down=int4,head=int4,accuracy=0", 1e-4),
    ("onnx:int4,asym,head=float,accuracy=0", 1e-4),
    ("onnx:int4,qdq", 0.02),
    ("onnx:int4,qdq,asym,scales=fp16", 0.02),
    ("onnx:int8,qdq", 0.02),
    ("onnx:int8,qdq,asym,head=float", 0.02),
    # Other providers' graphs run on processors, too.
    *((f"onnx:{preset},ep={provider}", 0.01) for provider in ("cuda", "dml") for preset in ("int4", "int8,asym", "fp16")),
    ("onnx:int4,ep=webgpu", 0.02),
    ("onnx:int4,ep=dml,qdq", 0.02),
    ("onnx:fp16,ep=webgpu", 0.01),
    ("onnx:int4,positive-scales,accuracy=0", 1e-4),
    ("onnx:int8,positive-scales,qdq", 0.02),
    # Activations with one scale for all of them lose more.
    *((target, 0.05) for target in ("onnx:int8-dynamic", "onnx:int8-static") for _ in "ab"),
    *(("onnx:int8-static,ranges=percentile", 0.05) for _ in "ab"),
]  # fmt: skip


# Tied and untied models by turns.
TURNS = [(("phi35", "phi4mini")[turn % 2], *row) for turn, row in enumerate(EVERY)]


@pytest.mark.parametrize(("fixture", "target", "bound"), TURNS)
def test_every_combination_runs_with_its_own_weights(
    folder: Convert, fixture: str, target: str, bound: float
) -> None:
    path = folder(fixture, target)
    ids, _ = prompts(fixture)["prose"]
    wanted = Decoder(pq.open(path))(ids[None], last=len(ids))[0]
    assert relative(Session(path).feed(ids), wanted) < bound


def test_rows_that_are_no_multiple_of_the_block_are_padded(folder: Convert) -> None:
    path = folder("phi3win", "onnx:int4,block=256,accuracy=0")
    ids, _ = prompts("phi3win")["prose"]
    wanted = Decoder(pq.open(path))(ids[None], last=len(ids))[0]
    assert relative(Session(path).feed(ids), wanted) < 1e-4


def test_best_and_overrides_reach_the_folder(folder: Convert) -> None:
    overridden = folder("phi35", "onnx:int4", tensor="onnx:*.down_proj.weight=int8_asym_g64")
    entry = pq.open(overridden).entries["model.layers.3.mlp.down_proj.weight"]
    assert entry.type == "int8_asym_g64"
    ids, wanted = prompts("phi35")["eval_short"]
    plain, best = (
        relative(Session(path).feed(ids)[-len(wanted) :], wanted)
        for path in (
            folder("phi35", "onnx:int4,asym,accuracy=0"),
            folder("phi35", "onnx:int4,asym,accuracy=0", quality="best"),
        )
    )
    assert best < plain


def divergence(path: Path, fixture: str) -> float:
    """Mean Kullback-Leibler divergence from transformers' recorded logits."""
    session, found = Session(path), []
    for name in ("eval_short", "eval_edge", "eval_long"):
        ids, wanted = prompts(fixture)[name]
        session.forget()
        pair = [wanted.astype(np.float64), session.feed(ids)[-len(wanted) :].astype(np.float64)]
        a, b = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in pair)
        found.append((np.exp(a) * (a - b)).sum(axis=-1))
    return float(np.concatenate(found).mean())


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
@pytest.mark.parametrize("target", ["onnx:int4,accuracy=0", "onnx:int4,asym,accuracy=0"])
def test_best_is_nearer_to_the_original(folder: Convert, fixture: str, target: str) -> None:
    plain, best = folder(fixture, target), folder(fixture, target, quality="best")
    assert divergence(best, fixture) < 0.95 * divergence(plain, fixture)


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
def test_positive_scales_are_positive(folder: Convert, fixture: str) -> None:
    checkpoint = pq.open(folder(fixture, "onnx:int4,positive-scales,accuracy=0"))
    matrices = [name for name, entry in checkpoint.entries.items() if entry.type.startswith("int")]
    assert matrices
    assert all((checkpoint[name].scales > 0).all() for name in matrices)


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
def test_classic_int8_loses_no_more_than_onnx_runtimes_own(
    folder: Convert, fixture: str, tmp_path: Path
) -> None:
    """quantize_dynamic makes the same graph from the float32 one."""
    own = tmp_path / "model.onnx"
    quantize_dynamic(
        folder(fixture, "onnx:fp32") / "model.onnx",
        own,
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        use_external_data_format=True,
    )
    ids, wanted = prompts(fixture)["eval_short"]
    theirs, dynamic, static = (
        relative(Session(path).feed(ids)[-len(wanted) :], wanted)
        for path in (
            tmp_path,
            folder(fixture, "onnx:int8-dynamic"),
            folder(fixture, "onnx:int8-static,ranges=percentile"),
        )
    )
    assert dynamic < 1.1 * theirs
    assert static < 2 * theirs


def test_partial_rotation_within_attention_is_the_reference_runs(tmp_path: Path) -> None:
    """phi4mini rotates 24 dimensions, which ONNX Runtime's attention cannot; of 16 it can."""
    source = tmp_path / "source"
    shutil.copytree(DATA / "phi4mini", source)
    config = json.loads((source / "config.json").read_text())
    config["partial_rotary_factor"] = 0.5
    for key in ("short_factor", "long_factor"):
        config["rope_scaling"][key] = config["rope_scaling"][key][:8]
    (source / "config.json").write_text(json.dumps(config))
    made = pq.convert(source, "onnx:fp32", tmp_path / "made").path
    graph = pq.onnx.read(Path(made) / "model.onnx").graph
    assert "If" in {node.op for node in graph.nodes}
    session = Session(Path(made))
    for name in ("prose", "eval_long"):
        ids, _ = prompts("phi4mini")[name]
        wanted = Decoder(pq.open(source))(ids[None], last=16)[0]
        session.forget()
        assert np.abs(session.feed(ids)[-16:] - wanted).max() < 1e-4, name


@pytest.mark.parametrize("preset", ["int4", "int8", "fp32"])
def test_greedy_text_is_that_of_the_builders_export(folder: Convert, preset: str) -> None:
    """Recorded of phi35, the one whose graph the builder makes alike: phi3win's loses its window,
    and ONNX Runtime refuses phi4mini's. See golden/make_onnx_builder.py.
    """
    fixture = "phi35"
    exports = json.loads((GOLDEN / "onnx-builder.json").read_text())["exports"]
    export = exports[f"{fixture}:{preset}:cpu"]
    exact = "" if preset == "fp32" else ",accuracy=0"
    path = folder(fixture, f"onnx:{preset}{exact}")
    for name, wanted in export["greedy"].items():
        ids, _ = prompts(fixture)[name]
        assert generated(path, ids.tolist(), len(wanted)) == wanted, name


@pytest.mark.parametrize("fixture", FIXTURES)
def test_greedy_text_in_float32_is_transformers_own(folder: Convert, fixture: str) -> None:
    path = folder(fixture, "onnx:fp32")
    recorded = json.loads((DATA / fixture / "reference.json").read_text())["prompts"]
    for name in ("function", "prose", "select"):
        wanted = recorded[name]["greedy_ids"]
        ids, _ = prompts(fixture)[name]
        assert generated(path, ids.tolist(), len(wanted)) == wanted, name


@pytest.mark.parametrize("fixture", FIXTURES)
def test_genai_reads_tokenizer_and_template(folder: Convert, fixture: str) -> None:
    path = folder(fixture, "onnx:int4")
    tokenizer = og.Tokenizer(og.Model(str(path)))
    recorded = json.loads((DATA / fixture / "reference.json").read_text())
    texts = recorded["prompts"]
    # Texts with several blanks in a row are split otherwise, also in the builder's folders.
    for name in ("prose", "select"):
        text = texts[name]["text"]
        ids, _ = prompts(fixture)[name]
        found = tokenizer.encode(text).tolist()
        assert found in (ids.tolist(), ids.tolist()[1:]), name
        assert tokenizer.decode(np.array(found, np.int32)).strip() == text.strip()
    chat = tokenizer.apply_chat_template(
        json.dumps([{"role": "user", "content": "Hi"}]), add_generation_prompt=True
    )
    assert chat.startswith("<|user|>") and chat.rstrip().endswith("<|assistant|>")


@pytest.mark.parametrize(
    ("target", "tensor", "value"),
    [
        ("onnx:fp16", "model.layers.0.mlp.down_proj.weight", 1e5),
        ("onnx:fp16", "model.layers.1.input_layernorm.weight", 7e4),
        ("onnx:int4,ep=cuda", "model.layers.0.mlp.down_proj.weight", 3e6),
        ("onnx:int4,scales=fp16", "model.layers.0.mlp.down_proj.weight", 3e6),
    ],
)
def test_what_float16_cannot_hold_is_an_error(
    tmp_path: Path, target: str, tensor: str, value: float
) -> None:
    source = tmp_path / "source"
    shutil.copytree(DATA / "phi3win", source)
    tensors = {name: np.array(held) for name, held in pq.open(source).items()}
    tensors[tensor].reshape(-1)[5] = value
    pq.safetensors.write(source / "model.safetensors", tensors, overwrite=True)
    with pytest.raises(pq.ValueRangeError, match="cannot hold") as raised:
        pq.convert(source, target, tmp_path / "made")
    assert raised.value.tensor == tensor
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("fixture", FIXTURES)
def test_large_tensors_can_be_mapped_and_the_graph_is_small(folder: Convert, fixture: str) -> None:
    path = folder(fixture, "onnx:fp32")
    assert (path / "model.onnx").stat().st_size < 100_000
    placed = [
        tensor.place
        for graph in pq.onnx.read(path / "model.onnx").graph.walk()
        for tensor in graph.initializers
        if tensor.place is not None
    ]
    large = [place for place in placed if place.nbytes > 1 << 20]
    assert large and all(place.offset % 4096 == 0 for place in large)
    assert all(place.offset % 64 == 0 for place in placed)


def test_default_lengths_need_no_huge_cache(folder: Convert) -> None:
    config = json.loads((folder("phi35", "onnx:int4") / "genai_config.json").read_text())
    assert config["model"]["context_length"] == 8192
    assert config["search"]["max_length"] == 4096
