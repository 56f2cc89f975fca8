"""Damaged and hostile checkpoints: each is refused by a typed error, quickly, and nothing is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from refusal import Refusal

import phiquant as pq
from tiny_model import INDEX, config_of, safetensors_bytes, weights_of, write_model

DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where results would go."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder


@pytest.fixture
def refused(out: Path) -> Refusal:
    return Refusal(out)


def test_the_model_that_the_cases_damage_is_sound(tmp_path: Path, out: Path) -> None:
    for shards in (1, 3):
        model = write_model(tmp_path / f"model{shards}", shards=shards)
        pq.convert(model, "q4_k_m", out)


# Rows 16 to 18: names in weight_map.
@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors", "/etc/passwd", "a/b.safetensors", "C:\\x.safetensors", "..\\x", "C:x",
        "x\0.safetensors", "x\n.safetensors", "\x1b[2J.safetensors", "", ".", "..", "x" * 300,
        "\ud800.safetensors",
    ],
    ids=ascii,
)  # fmt: skip
def test_rows_16_to_18_a_shard_name_that_is_no_plain_name(
    name: str, tmp_path: Path, refused: Refusal
) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(weights_of(config_of())))
    model = write_model(tmp_path / "model", shards=2, index_changes={NORM: name})
    refused(model, pq.FormatError, INDEX)


@pytest.mark.parametrize("value", [None, 1, ["x"], {"a": "b"}], ids=repr)
def test_row_16_a_shard_name_that_is_no_string(
    value: object, tmp_path: Path, refused: Refusal
) -> None:
    model = write_model(tmp_path / "model", shards=2)
    (model / INDEX).write_text(json.dumps({"weight_map": {NORM: value}}))
    refused(model, pq.FormatError, INDEX)


@pytest.mark.parametrize("text", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', "", "{"])
def test_row_16_an_index_without_a_map(text: str, tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model", shards=2)
    (model / INDEX).write_text(text)
    refused(model, pq.FormatError, INDEX)


# Rows 19 and 20: index and shards that do not belong together.
def test_row_19_an_index_that_names_a_missing_shard(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model", shards=2)
    (model / "model-00002-of-00002.safetensors").unlink()
    refused(model, pq.FormatError, "model-00002-of-00002.safetensors", "missing", "fetch")


def test_row_19_shards_without_an_index(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model", shards=2)
    (model / INDEX).unlink()
    refused(model, pq.FormatError, INDEX, "fetch")


def test_row_20_a_shard_with_a_tensor_that_the_index_lacks(
    tmp_path: Path, refused: Refusal
) -> None:
    model = write_model(tmp_path / "model", shards=2, index_changes={NORM: None})
    refused(model, pq.FormatError, NORM, "index")


def test_row_20_an_index_with_a_tensor_that_the_shard_lacks(
    tmp_path: Path, refused: Refusal
) -> None:
    shard = "model-00001-of-00002.safetensors"
    for name in ("model.layers.7.mlp.down_proj.weight", NORM):
        model = write_model(tmp_path / "model", shards=2, index_changes={name: shard})
        refused(model, pq.FormatError, name, shard)


def test_row_20_a_tensor_in_two_shards(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model", shards=2)
    again = {NORM: weights_of(config_of())[NORM]}
    (model / "more.safetensors").write_bytes(safetensors_bytes(again))
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["x"] = "more.safetensors"
    (model / INDEX).write_text(json.dumps(index))
    refused(model, pq.FormatError, NORM, "too", "more.safetensors")


# Rows 21 to 23: links and what is no file.
def test_row_21_a_shard_that_is_a_link_to_outside(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model")
    shard = model / "model.safetensors"
    outside = shard.rename(tmp_path / "outside.safetensors")
    for target in (outside, Path("/etc/passwd"), Path("../outside.safetensors")):
        shard.unlink(missing_ok=True)
        shard.symlink_to(target)
        refused(model, pq.FormatError, "model.safetensors", "link")


@pytest.mark.parametrize("target", ["nowhere", "model.safetensors"])
def test_row_21_a_link_to_nothing_or_itself(target: str, tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(target)
    with pytest.raises(pq.PhiquantError, match=r"model\.safetensors") as caught:
        pq.convert(model, "q8_0", refused.out)
    assert caught.value.exit_code in (3, 4)
    assert list(refused.out.iterdir()) == []


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "tokenizer.model"])
def test_row_21_small_files_that_are_links_to_outside(
    name: str, tmp_path: Path, refused: Refusal
) -> None:
    model = write_model(tmp_path / "model")
    (model / name).rename(tmp_path / name)
    (model / name).symlink_to(tmp_path / name)
    refused(model, pq.FormatError, name, "link")


def test_row_21_a_licence_that_is_a_link_to_outside_is_not_copied(
    tmp_path: Path, out: Path
) -> None:
    model = write_model(tmp_path / "model")
    (tmp_path / "secret").write_text("a key that must not get into a published file")
    (model / "LICENSE").symlink_to(tmp_path / "secret")
    pq.convert(model, "q4_k_m", out, companions=True)
    assert "a key" not in (out / "Modelfile").read_text()


def test_row_22_links_in_a_hub_cache_are_followed(tmp_path: Path, out: Path) -> None:
    made = write_model(tmp_path / "made", shards=2)
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "abc123", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(made.iterdir())):
        path.rename(blobs / f"{number:040d}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040d}")
    pq.convert(snapshot, "q4_k_m", out)


def test_row_22_links_from_one_hub_cache_into_another_are_refused(
    tmp_path: Path, refused: Refusal
) -> None:
    repository = tmp_path / "hub" / "models--owner--name"
    model = write_model(repository / "snapshots" / "abc123")
    blobs = tmp_path / "hub" / "models--owner--private" / "blobs"
    blobs.mkdir(parents=True)
    (model / "model.safetensors").rename(blobs / "1")
    (model / "model.safetensors").symlink_to("../../../models--owner--private/blobs/1")
    refused(model, pq.FormatError, "link")


def test_row_22_a_model_in_a_linked_folder_is_read(tmp_path: Path, out: Path) -> None:
    write_model(tmp_path / "real" / "model", shards=2)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    pq.convert(tmp_path / "link" / "model", "q4_k_m", out)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))


@pytest.mark.parametrize("make", [fifo, folder, device], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "name",
    ["model-00002-of-00002.safetensors", INDEX, "config.json", "tokenizer.json", "tokenizer.model"],
)
def test_row_23_what_is_no_regular_file(
    make: Callable[[Path], None], name: str, tmp_path: Path, refused: Refusal
) -> None:
    if make is device and os.geteuid() != 0:
        pytest.skip("only root can make devices")
    model = write_model(tmp_path / "model", shards=2)
    (model / name).unlink()
    make(model / name)
    refused(model, pq.FormatError, name, "regular file")


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/stdin", "fifo"])
def test_row_23_a_source_that_is_no_file(source: str, tmp_path: Path, refused: Refusal) -> None:
    path = Path(source)
    if source == "fifo":
        path = tmp_path / "fifo"
        os.mkfifo(path)
    elif source == "/dev/stdin":
        path = tmp_path / "null.safetensors"
        path.symlink_to("/dev/null")
    refused(path, pq.FormatError, "regular file")


# Row 26: pickles.
@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_row_26_pickled_weights_are_never_loaded(
    name: str, tmp_path: Path, refused: Refusal
) -> None:
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    refused(model, pq.UnsupportedError, name, "pickle", "safetensors")
    refused(model / name, pq.UnsupportedError, name, "pickle", "safetensors")


# Rows 27 to 31: the config; test_architecture_bad_configs.py has them all.
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"hidden_size": 1, "hidden_size": 2}', "twice"),
        ('{"hidden_size": NaN}', "NaN"),
        ("", "not JSON"),
    ],
)
def test_row_27_a_config_with_two_meanings(
    text: str, words: str, tmp_path: Path, refused: Refusal
) -> None:
    model = write_model(tmp_path / "model")
    (model / "config.json").write_text(text)
    refused(model, pq.FormatError, "config.json", words)


def test_row_27_no_config(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model")
    (model / "config.json").unlink()
    refused(model, pq.FormatError, "config.json", "missing")


@pytest.mark.parametrize("size", [0, -256, 1 << 63, 10**400, 256.5, "256", True, [256]], ids=str)
def test_row_28_a_hidden_size_that_is_no_size(
    size: object, tmp_path: Path, refused: Refusal
) -> None:
    model = write_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": size}))
    refused(model, pq.FormatError, "config.json")


@pytest.mark.parametrize("layers", [2, 1 << 40], ids=str)
def test_row_29_more_layers_than_tensors(layers: int, tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model", weights_of(config_of()), num_hidden_layers=layers)
    refused(model, pq.FormatError, "layers")


def test_row_29_fewer_layers_than_tensors(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model", weights_of(config_of(num_hidden_layers=2)))
    refused(model, pq.FormatError, "layers")


def test_row_30_another_architecture(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model", architectures=["LlamaForCausalLM"], model_type="llama")
    refused(model, pq.UnsupportedError, "LlamaForCausalLM")


def test_row_30_a_name_that_would_steer_the_terminal(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model", hidden_act="\x1b[2J\x1b]0;owned\x07")
    refused(model, pq.UnsupportedError, "hidden_act", "\\x1b[2J")


@pytest.mark.parametrize("count", [0, 31, 33])
def test_row_31_factors_of_the_wrong_length(count: int, tmp_path: Path, refused: Refusal) -> None:
    scaling = {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [1.0] * count}
    model = write_model(tmp_path / "model", rope_scaling=scaling, max_position_embeddings=4096)
    refused(model, pq.FormatError, "long_factor")


# Row 32: rows that K-quants cannot take.
def test_row_32_rows_that_fit_no_super_block_fall_back_and_say_so(
    tmp_path: Path, out: Path
) -> None:
    model = write_model(tmp_path / "model", intermediate_size=320)
    report = pq.convert(model, "q4_k_m", out)
    assert any("320" in note and "llama-quantize" in note for note in report.notes), report.notes
    down = pq.open(report.path)["blk.0.ffn_down.weight"]
    assert down.codec.name in ("q5_0", "q5_1", "q8_0")


def test_row_32_rows_that_fit_no_block_at_all(tmp_path: Path, out: Path) -> None:
    model = write_model(tmp_path / "model", intermediate_size=48)
    report = pq.convert(model, "q4_k_m", out)
    assert any("48" in note for note in report.notes), report.notes
    assert pq.open(report.path)["blk.0.ffn_down.weight"].dtype == np.float16


# Rows 36 and 37: quantized sources, and heads.
@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_row_36_a_config_of_a_quantized_model(
    method: str, tmp_path: Path, refused: Refusal
) -> None:
    model = write_model(tmp_path / "model", quantization_config={"quant_method": method})
    refused(model, pq.UnsupportedError, "quantized", "original")


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        ("qweight", np.int32),
        ("weight_scale", np.float32),
        ("SCB", np.float32),
        ("absmax", np.uint8),
    ],
)
def test_row_36_tensors_of_a_quantized_model(
    suffix: str, dtype: Any, tmp_path: Path, refused: Refusal
) -> None:
    name = f"model.layers.0.mlp.down_proj.{suffix}"
    weights = {**weights_of(config_of()), name: np.zeros((8, 8), dtype)}
    refused(write_model(tmp_path / "model", weights), pq.UnsupportedError, name, "quantized")


def test_row_36_float8_weights(tmp_path: Path, refused: Refusal) -> None:
    weights = weights_of(config_of())
    weights[DOWN] = weights[DOWN].astype(ml_dtypes.float8_e4m3fn)
    refused(write_model(tmp_path / "model", weights), pq.UnsupportedError, DOWN, "quantized")


def test_row_36_integer_weights(tmp_path: Path, refused: Refusal) -> None:
    weights = weights_of(config_of())
    weights[DOWN] = np.zeros(weights[DOWN].shape, np.int8)
    refused(write_model(tmp_path / "model", weights), pq.UnsupportedError, DOWN)


def test_row_37_a_tied_model_has_no_head_of_its_own(tmp_path: Path, out: Path) -> None:
    report = pq.convert(write_model(tmp_path / "model"), "q4_k_m", out)
    assert "output.weight" not in pq.open(report.path)


def test_row_37_an_untied_model_without_a_head(tmp_path: Path, refused: Refusal) -> None:
    weights = weights_of(config_of())
    model = write_model(tmp_path / "model", weights, tie_word_embeddings=False)
    refused(model, pq.FormatError, "lm_head.weight", "tie_word_embeddings")


# Rows 38 and 39: vocabularies and templates.
def test_row_38_more_tokens_than_embedding_rows(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model", vocab_size=3000, eos_token_id=2, pad_token_id=2)
    refused(model, pq.FormatError, "3000")


def test_row_38_a_vocab_size_that_is_not_the_embedding_s(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model", weights_of(config_of()), vocab_size=4100)
    refused(model, pq.ShapeError, "4096", "4100")


def edit_tokenizer(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    (model / "tokenizer.model").unlink()
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    change(tokenizer)
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_row_38_two_tokens_with_one_id(tmp_path: Path, refused: Refusal) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        names = list(vocabulary)
        vocabulary[names[600]] = vocabulary[names[601]]

    model = write_model(tmp_path / "model")
    edit_tokenizer(model, change)
    refused(model, pq.FormatError, "tokenizer.json")


def test_row_38_one_token_with_two_ids(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model")
    (model / "tokenizer.model").unlink()
    text = (model / "tokenizer.json").read_text()
    start = text.index('"vocab"')
    start = text.index("{", start) + 1
    (model / "tokenizer.json").write_text(text[:start] + '"<unk>": 7, ' + text[start:])
    refused(model, pq.FormatError, "tokenizer.json", "twice")


def test_row_38_tokens_that_are_not_utf_8(tmp_path: Path, refused: Refusal) -> None:
    model = write_model(tmp_path / "model")
    path = model / "tokenizer.model"
    data = path.read_bytes()
    at = data.index(b"the")
    path.write_bytes(data[:at] + b"\xff\xfe\xfd" + data[at + 3 :])
    refused(model, pq.FormatError, "tokenizer.model", "UTF-8")


@pytest.mark.parametrize("token", ["\ud800", "a\0b"], ids=ascii)
def test_row_38_tokens_that_no_file_can_hold(token: str, tmp_path: Path, refused: Refusal) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        name = list(vocabulary)[600]
        vocabulary[token] = vocabulary.pop(name)

    model = write_model(tmp_path / "model")
    edit_tokenizer(model, change)
    refused(model, pq.FormatError, "tokenizer.json")


def without_template(model: Path) -> Path:
    """The model, whose chat template then comes from a file of its own."""
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    path.write_text(json.dumps(config))
    return model


def test_row_39_a_huge_chat_template_is_refused_unread(tmp_path: Path, refused: Refusal) -> None:
    model = without_template(write_model(tmp_path / "model"))
    with (model / "chat_template.jinja").open("wb") as file:
        file.truncate(1 << 30)
    refused(model, pq.FormatError, "chat_template.jinja", str(1 << 30))


def test_row_39_a_template_with_code_is_copied_and_never_run(tmp_path: Path, out: Path) -> None:
    mark = tmp_path / "pwned"
    code = f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{{{ open('{mark}', 'w') }}}}"
    model = without_template(write_model(tmp_path / "model"))
    (model / "chat_template.jinja").write_text(code)
    report = pq.convert(model, "q4_k_m", out, companions=True)
    assert pq.open(report.path).metadata["tokenizer.chat_template"] == code
    assert not mark.exists()
