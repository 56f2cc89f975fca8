"""Models in memory become what their saved folders become, byte for byte, and are not copied."""

from __future__ import annotations

import copy
import functools
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import phiquant as pq
from phiquant.registry.store import Registry

DATA = Path(__file__).parents[1] / "data"
TARGETS = ("gguf:q4_k_m", "onnx:int4", "mlx:4bit", "openvino:int4", "hf:w4a16")

needs_new_python = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="transformers 5 and JAX need Python 3.11"
)


@functools.cache
def loaded(source: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(DATA / source, dtype=dtype)


def tuned(source: str, dtype: str = "bfloat16") -> Any:
    """A model that is no longer what stands in its folder."""
    model = copy.deepcopy(loaded(source, dtype))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.25)
    return model


def tokenizer_of(source: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DATA / source)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def arrays_of(source: str) -> dict[str, Any]:
    opened = pq.open(DATA / source)
    return {name: np.array(opened[name]) for name in opened}


@needs_new_python
@pytest.mark.parametrize(
    ("source", "dtype"), [("phi35", "bfloat16"), ("phi4mini", "bfloat16"), ("phi3win", "float32")]
)
def test_a_model_becomes_what_its_saved_folder_becomes(
    source: str, dtype: str, tmp_path: Path
) -> None:
    model, tokenizer = tuned(source, dtype), tokenizer_of(source)
    for out in ("saved", "in memory"):
        (tmp_path / out).mkdir()
    # Rows of 320 divide into no groups of 128.
    targets = [t + ",group=64" if (source, t) == ("phi3win", "hf:w4a16") else t for t in TARGETS]
    pq.convert(model, tokenizer=tokenizer, name="tuned", to=targets, out=tmp_path / "in memory")
    folder = tmp_path / "tuned"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pq.convert(folder, to=targets, out=tmp_path / "saved")
    expected = files_of(tmp_path / "saved")
    assert len(expected) > 20
    found = files_of(tmp_path / "in memory")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@needs_new_python
def test_a_plan_of_a_model_names_it_and_its_files_vanish_afterwards(tmp_path: Path) -> None:
    left = set(Path(tempfile.gettempdir()).glob("phiquant-*"))
    plan = pq.plan(tuned("phi4mini"), tokenizer=DATA / "phi4mini", to=["q4_k_m", "onnx:int4"])
    assert "Phi3ForCausalLM (in memory)" in str(plan)
    assert [target.name for target in plan.targets] == [
        "phi4mini-q4_k_m.gguf",
        "phi4mini-onnx-int4",
    ]
    report = plan.run(tmp_path)
    assert report.source == "Phi3ForCausalLM (in memory)"
    recorded = Registry().at(report.results[0].resolve())
    assert recorded is not None
    assert recorded.facts["source"]["path"] == "Phi3ForCausalLM (in memory)"
    assert not recorded.facts["source"].get("files")
    assert set(Path(tempfile.gettempdir()).glob("phiquant-*")) - left
    del plan
    gc.collect()
    assert set(Path(tempfile.gettempdir()).glob("phiquant-*")) <= left


def as_torch(array: Any) -> Any:
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def as_jax(array: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(array)


def as_mlx(array: Any) -> Any:
    import mlx.core as mx

    return mx.array(array.view(np.uint16)).view(mx.bfloat16)


def as_learnt(array: Any) -> Any:
    return torch.nn.Parameter(as_torch(array))


def as_read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


KINDS: dict[str, Callable[[Any], Any]] = {
    "ml_dtypes": lambda array: array,
    "read-only": as_read_only,
    "torch": as_torch,
    "torch parameters": as_learnt,
    "jax": as_jax,
    "mlx": as_mlx,
}


@needs_new_python
@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_of_any_arrays_become_what_the_folder_becomes(
    kind: str, tmp_path: Path
) -> None:
    if kind == "mlx" and sys.platform == "win32":
        pytest.skip("mlx does not exist for Windows")
    expected = pq.convert(DATA / "phi35", to="q4_k_m", out=tmp_path / "folder.gguf").path
    state = {name: KINDS[kind](array) for name, array in arrays_of("phi35").items()}
    found = pq.convert(
        state,
        config=DATA / "phi35" / "config.json",
        tokenizer=DATA / "phi35",
        to="q4_k_m",
        out=tmp_path / "memory.gguf",
    ).path
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_names_lose_what_torch_wraps_put_before_them(prefix: str) -> None:
    state = {prefix + name: array for name, array in arrays_of("phi35").items()}
    plan = pq.plan(state, config=DATA / "phi35", tokenizer=DATA / "phi35", to="q4_k_m")
    assert plan.targets[0].name == "phi35-q4_k_m.gguf"


@pytest.mark.parametrize("how", ["one memory", "a copy", "other values"])
def test_a_tied_output_is_the_embedding_once(how: str) -> None:
    state = arrays_of("phi4mini")
    embedding = state["model.embed_tokens.weight"]
    head = embedding if how == "one memory" else embedding.copy()
    if how == "other values":
        head[4000, 7] += 1
    state["lm_head.weight"] = head
    plan = pq.plan(state, config=DATA / "phi4mini", tokenizer=DATA / "phi4mini", to="q4_k_m")
    names = {tensor.name for file in plan.targets[0].files for tensor in file.tensors}
    assert ("output.weight" in names) is (how == "other values")


@needs_new_python
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_wrapped_models_are_unwrapped() -> None:
    model = tuned("phi4mini")
    for wrapped in (torch.nn.DataParallel(model), torch.compile(model)):
        plan = pq.plan(wrapped, tokenizer=DATA / "phi4mini", to="q4_k_m")
        assert plan.checkpoint.path.name == "Phi3ForCausalLM (in memory)"


def refused(state: Any, error: type[Exception], match: str, **options: Any) -> None:
    given = {"config": DATA / "phi35", "tokenizer": DATA / "phi35", "to": "q4_k_m"} | options
    with pytest.raises(error, match=match):
        pq.plan(state, **{key: value for key, value in given.items() if value is not None})


def test_tensors_that_cannot_be_read_in_place_are_refused_by_name() -> None:
    name = "model.layers.2.mlp.down_proj.weight"
    array = arrays_of("phi35")[name]
    turned = np.ascontiguousarray(array.T).T
    spaced = np.zeros((2 * array.shape[0], array.shape[1]), array.dtype)[::2]
    on_meta = torch.zeros(array.shape, dtype=torch.bfloat16, device="meta")
    cases: list[tuple[Any, type[Exception], str]] = [
        (turned, pq.ShapeError, "ascontiguousarray"),
        (spaced, pq.ShapeError, r"strides.*contiguous\(\)"),
        (array.astype(np.float64), pq.ShapeError, "float64"),
        (on_meta, pq.UnsupportedError, "meta device.*without device_map"),
    ]
    for tensor, error, match in cases:
        refused(arrays_of("phi35") | {name: tensor}, error, rf"layers\.2\.mlp\.down_proj.*{match}")
    lacking = arrays_of("phi35")
    del lacking[name]
    refused(lacking, pq.FormatError, r"dict \(in memory\).*lacks.*layers\.2\.mlp\.down_proj")
    infinite = arrays_of("phi35")
    infinite[name][3, 5] = ml_dtypes.bfloat16(np.inf)
    with pytest.raises(pq.ValueRangeError, match=r"in memory.*layers\.2\.mlp\.down_proj"):
        pq.convert(
            infinite, config=DATA / "phi35", tokenizer=DATA / "phi35", to="q4_k_m", out="never.gguf"
        )


def test_tensors_on_another_device_are_refused_with_the_way_to_bring_them() -> None:
    if torch.cuda.is_available():
        there = torch.zeros(4, 4, dtype=torch.bfloat16, device="cuda")
    else:  # torch's own stand-in for a device without kernels
        there = torch.zeros(4, 4, dtype=torch.bfloat16, device="meta")
    refused({"model.norm.weight": there}, pq.UnsupportedError, "device")


def test_what_is_missing_is_said() -> None:
    state = arrays_of("phi35")
    refused(state, pq.UsageError, r"no config.*config=model\.config", config=None)
    refused(state, pq.UsageError, r"no tokenizer.*AutoTokenizer", tokenizer=None)
    refused(state, pq.UsageError, "has no save_pretrained", tokenizer=7)
    refused(state, pq.UsageError, "no folder", tokenizer=DATA / "nothing")
    refused(state, pq.IoError, "cannot be read", config=DATA / "nothing.json")
    refused({}, pq.FormatError, "lacks")
    with pytest.raises(pq.UsageError, match="tokenizer is for models in memory"):
        pq.plan(DATA / "phi35", tokenizer=DATA / "phi35", to="q4_k_m")


@needs_new_python
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_adapters_are_to_be_merged_first() -> None:
    import peft

    model = peft.get_peft_model(
        tuned("phi4mini"), peft.LoraConfig(target_modules=["qkv_proj"], r=2, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    for source in (model, model.state_dict()):
        with pytest.raises(pq.UsageError, match="merge_and_unload"):
            pq.plan(source, config=None if source is model else DATA / "phi4mini",
                    tokenizer=DATA / "phi4mini", to="q4_k_m")  # fmt: skip
    merged = model.merge_and_unload()
    pq.plan(merged, tokenizer=DATA / "phi4mini", to="q4_k_m")


@needs_new_python
def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = pq.convert(DATA / "phi4mini", to="hf:w4a16", out=tmp_path / "quantized").path
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(pq.UnsupportedError, match="quantized already"):
        pq.plan(model, tokenizer=DATA / "phi4mini", to="q4_k_m")


@needs_new_python
def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = tuned("phi4mini")
    before = model.config.to_json_string()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pq.convert(model, tokenizer=DATA / "phi4mini", to="hf:w4a16", out=tmp_path / "out")
    assert model.config.to_json_string() == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


# By each matrix's error, its largest weight, and the activations of a text.
@pytest.mark.parametrize(
    "target", ["openvino:int4,ratio=0.6", "hf:nvfp4", "onnx:int8-static,tokens=512"]
)
def test_what_is_measured_first_is_measured_in_memory(target: str, tmp_path: Path) -> None:
    expected = pq.convert(DATA / "phi35", to=target, out=tmp_path / "folder").path
    found = pq.convert(
        arrays_of("phi35"), config=DATA / "phi35", tokenizer=DATA / "phi35", to=target, out=tmp_path / "memory"
    ).path  # fmt: skip
    assert files_of(found) == files_of(expected)


MEMORY = """
import json, resource, sys
from pathlib import Path
import ml_dtypes, numpy as np
import phiquant as pq

data, out = Path(sys.argv[1]), sys.argv[2]
config = json.loads((data / "config.json").read_text())
config |= {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 3, "num_attention_heads": 64,
           "num_key_value_heads": 64, "vocab_size": 16384}
pattern = np.random.default_rng(1).standard_normal(1 << 20).astype(ml_dtypes.bfloat16)
def made(*shape):
    return np.resize(pattern, shape)
state = {"model.embed_tokens.weight": made(16384, 2048), "lm_head.weight": made(16384, 2048), "model.norm.weight": made(2048)}
for layer in range(3):
    for name, shape in (("self_attn.qkv_proj", (6144, 2048)), ("self_attn.o_proj", (2048, 2048)), ("mlp.gate_up_proj", (16384, 2048)),
                        ("mlp.down_proj", (2048, 8192)), ("input_layernorm", (2048,)), ("post_attention_layernorm", (2048,))):
        state[f"model.layers.{layer}.{name}.weight"] = made(*shape)
total = sum(array.nbytes for array in state.values())
pq.convert(data, to="q4_k_m", out=out + ".first")  # what is loaded once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pq.convert(state, config=config, tokenizer=data, to=["q4_k_m", "onnx:int4"], out=out + ".d/")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"weights": total, "grown": 1024 * (after - before)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_no_copy_of_the_weights_is_made(tmp_path: Path) -> None:
    (tmp_path / "out.d").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, DATA / "phi35", tmp_path / "out"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert found["weights"] > 400e6
    # Tiles of two workers, and the headers.
    assert found["grown"] < 100e6
