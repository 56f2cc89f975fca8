"""OpenVINO and openvino_genai run phiquant's folders, and say what was recorded."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import openvino_peer as peer
import phiquant as pq
from phiquant.evaluate import verify
from phiquant.runtimes.openvino_genai import RUNTIME
from places import DATA, FIXTURES, GOLDEN

EXPORTS = json.loads((GOLDEN / "openvino-exports.json").read_text(encoding="utf-8"))["exports"]
QUANTIZED = (
    "int8",
    "int8_sym",
    "int4_sym,group=64",
    "int4_asym,group=64",
    "int4_sym,group=64,ratio=0.6",
    "int4_asym,group=64,awq",
    "nf4,group=64",
    "mxfp4",
)
GREEDY = ("select", "function", "chat", "prose")


@cache
def reference(fixture: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    facts = json.loads((DATA / fixture / "reference.json").read_text(encoding="utf-8"))
    with np.load(DATA / fixture / "reference.npz") as arrays:
        return facts["prompts"], dict(arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """folder(fixture, preset) gives the path of that OpenVINO folder, made once."""
    base = tmp_path_factory.mktemp("openvino")

    def make(fixture: str, preset: str) -> Path:
        path = base / f"{fixture}-{preset}".replace(",", "-").replace("=", "-")
        if not path.exists():
            pq.convert(DATA / fixture, f"openvino:{preset}", path)
        return path

    return make


@pytest.mark.parametrize("fixture", FIXTURES)
def test_fp16_gives_the_recorded_logits_short_and_long(folder, fixture):
    # Float32 sums in another order make 2e-5; weights that halves cannot hold are the rest. The
    # longest prompt is beyond longrope's original context.
    _, arrays = reference(fixture)
    model = peer.Model(folder(fixture, "fp16"))
    prompts = [name.removesuffix(".ids") for name in arrays if name.endswith(".ids")]
    assert "eval_long" in prompts
    for prompt in prompts:
        wanted = arrays[f"{prompt}.logits"]
        found = model.logits(arrays[f"{prompt}.ids"])[-len(wanted) :]
        assert abs(found - wanted).max() < 1e-3, prompt


@pytest.mark.parametrize("preset", QUANTIZED)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_quantized_logits_are_those_of_optimum_intels_export(folder, fixture, preset):
    # The weights are the same bytes; the order of float32 sums is not. Logits are around ten.
    recorded = EXPORTS[fixture][preset]
    _, arrays = reference(fixture)
    model = peer.Model(folder(fixture, preset))
    for prompt, wanted in recorded["logits"].items():
        found = model.logits(arrays[f"{prompt}.ids"])[-1, ::32]
        assert abs(found - np.array(wanted, np.float32)).max() < 5e-5, prompt


@pytest.mark.parametrize("preset", QUANTIZED)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_plugin_fuses_what_it_fuses_in_optimum_intels_export(folder, fixture, preset):
    kernels = peer.Model(folder(fixture, preset)).kernels()
    wanted = EXPORTS[fixture][preset]["fused"]
    assert {kind: kernels[kind] for kind in wanted} == wanted


@pytest.mark.parametrize("backend", ["PA", "SDPA"])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_pipeline_continues_texts_as_transformers_does(folder, fixture, backend):
    # From text to text: tokenizer, model and detokenizer. phi3win's window of 47 tokens is passed.
    prompts, _ = reference(fixture)
    tokenizer = Tokenizer.from_file(str(DATA / fixture / "tokenizer.json"))
    pipeline = peer.pipeline(folder(fixture, "fp16"), backend)
    for name in GREEDY:
        wanted = tokenizer.decode(prompts[name]["greedy_ids"], skip_special_tokens=True)
        assert peer.greedy(pipeline, prompts[name]["text"], 48) == wanted, name


@pytest.mark.parametrize("preset", QUANTIZED)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_quantized_texts_are_those_of_optimum_intels_export(folder, fixture, preset):
    prompts, _ = reference(fixture)
    pipeline = peer.pipeline(folder(fixture, preset), "PA")
    for name, wanted in EXPORTS[fixture][preset]["greedy"].items():
        found = peer.greedy(pipeline, prompts[name]["text"], 24)
        # Where a run of byte tokens is no UTF-8, Hugging Face makes each of them a U+FFFD, and so
        # do we; openvino-tokenizers' own detokenizer keeps those that are ASCII.
        odd = re.compile("[\ufffd\x00-\x1f]+")
        assert odd.sub("?", found) == odd.sub("?", wanted), name


@pytest.mark.parametrize("fixture", FIXTURES)
def test_tokens_one_by_one_give_the_logits_of_the_whole(folder, fixture):
    _, arrays = reference(fixture)
    ids = arrays["eval_short.ids"][:72]
    model = peer.Model(folder(fixture, "fp16"))
    whole = model.logits(ids)
    pieces = [model.logits(ids[:50])]
    pieces += [model.more(ids[at : at + 1]) for at in range(50, len(ids))]
    assert abs(np.concatenate(pieces) - whole).max() < 1e-4


@pytest.mark.parametrize("fixture", FIXTURES)
def test_a_batch_padded_on_the_left_gives_each_sequences_logits(folder, fixture):
    _, arrays = reference(fixture)
    model = peer.Model(folder(fixture, "fp16"))
    long, short = arrays["eval_short.ids"][:60], arrays["select.ids"]
    alone = [model.logits(ids)[-1] for ids in (long, short)]
    pad = len(long) - len(short)
    ids = np.stack([long, np.concatenate([np.zeros(pad, np.int64), short])])
    mask = np.ones_like(ids)
    mask[1, :pad] = 0
    model.request.reset_state()
    found = model.request.infer(
        {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
            "beam_idx": np.arange(2, dtype=np.int32),
        }
    )["logits"]
    assert abs(found[:, -1] - np.stack(alone)).max() < 1e-4


def test_beams_take_their_caches_along(folder):
    _, arrays = reference("phi4mini")
    model = peer.Model(folder("phi4mini", "fp16"))
    first, second = arrays["prose.ids"][:9], arrays["function.ids"][:9]
    model.request.reset_state()
    positions = np.tile(np.arange(9), (2, 1))
    model.request.infer(
        {
            "input_ids": np.stack([first, second]),
            "attention_mask": np.ones((2, 9), np.int64),
            "position_ids": positions,
            "beam_idx": np.arange(2, dtype=np.int32),
        }
    )
    crossed = model.request.infer(
        {
            "input_ids": np.array([[5], [7]]),
            "attention_mask": np.ones((2, 10), np.int64),
            "position_ids": np.full((2, 1), 9),
            "beam_idx": np.array([1, 0], np.int32),
        }
    )["logits"][:, 0].copy()
    wanted = [model.logits(np.append(second, 5))[-1], model.logits(np.append(first, 7))[-1]]
    assert abs(crossed - np.stack(wanted)).max() < 1e-4


def test_the_embedding_is_stored_once_where_it_is_tied(folder):
    written = pq.open(folder("phi4mini", "int8"))
    assert "lm_head.weight" not in written.entries
    path = folder("phi4mini", "int8") / "openvino_model.bin"
    assert path.stat().st_size < 1.1 * written.nbytes


@pytest.mark.parametrize("fixture", FIXTURES)
def test_overrides_and_other_groups_run(tmp_path, fixture):
    override = "openvino:*.down_proj.weight=int8_sym_channel"
    pq.convert(DATA / fixture, "openvino:int4,group=32", tmp_path / "out", tensor=override)
    written = pq.open(tmp_path / "out")
    assert written.entries["model.layers.1.mlp.down_proj.weight"].type.startswith("int8_sym_ch")
    assert written.entries["model.layers.1.self_attn.o_proj.weight"].type.startswith(
        "int4_asym_g32"
    )
    check = verify(tmp_path / "out", DATA / fixture)
    assert check.passed, str(check)
    assert RUNTIME.recognizes(tmp_path / "out")


@pytest.mark.parametrize("group", ["16", "128", "256", "channel"])
def test_every_group_runs(tmp_path, group):
    pq.convert(DATA / "phi35", f"openvino:int4_asym,group={group}", tmp_path / "out")
    check = verify(tmp_path / "out", DATA / "phi35")
    assert check.passed, str(check)


def test_the_chat_template_and_the_ends_of_texts_are_found(folder):
    tokenizer = peer.genai.Tokenizer(str(folder("phi35", "int8")))
    chat = [{"role": "user", "content": "hi"}]
    shown = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert shown == "<|user|>\nhi<|end|>\n<|assistant|>\n"
    config = json.loads((folder("phi35", "int8") / "generation_config.json").read_text())
    pipeline = peer.pipeline(folder("phi35", "int8"), "SDPA")
    assert pipeline.get_generation_config().stop_token_ids == set(config["eos_token_id"])
