"""Tokenizer files that must be refused: a typed error that names the file and the cause, at once, in little memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phiquant import tokenizer as room
from phiquant.errors import FormatError, PhiquantError, UnsupportedError

DATA = Path(__file__).parents[1] / "data"
WEIGHTS = shutil.ignore_patterns("*.safetensors", "*.npz", "*.gguf")
ROWS = 4096

Json = dict[str, Any]
Change = Callable[[Json], Any]


def small_files(fixture: str, folder: Path, *without: str) -> Path:
    """A copy of the fixture's small files."""
    shutil.copytree(DATA / fixture, folder, ignore=WEIGHTS)
    for name in without:
        (folder / name).unlink()
    return folder


def refuse(
    folder: Path,
    *words: str,
    rows: int = ROWS,
    error: type[PhiquantError] = FormatError,
) -> None:
    with pytest.raises(error) as caught:
        room.load(folder, vocab_size=rows)
    assert type(caught.value) is error
    assert caught.value.exit_code == 3
    assert str(folder) in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    # An error is read on a terminal: no control characters, and no megabytes of the file.
    assert str(caught.value).isprintable() and len(str(caught.value)) < 2000


def edit(path: Path, change: Change) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


# Files that are not what their names say

BROKEN = {
    "empty": (b"", "JSON"),
    "truncated": (b'{"model": {"vocab": {"a": 1', "JSON"),
    "not UTF-8": (b'{"model": "\xff"}', "UTF-8"),
    "an array": (b"[1, 2]", "an array"),
    "a key twice": (b'{"model": {}, "model": {}}', "twice"),
    "a token twice": (b'{"model": {"vocab": {"a": 1, "a": 2}}}', "twice"),
    "NaN": (b'{"model": NaN}', "NaN"),
    "nested without end": (b'{"model": ' + b"[" * 100_000, "nested"),
    "half a surrogate pair": (b'{"added_tokens": ["\\ud800"]}', "no Unicode text"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
    "a web page": (b"<!DOCTYPE html><html></html>", "web page"),
}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_json_is_refused(tmp_path: Path, name: str, case: str) -> None:
    folder = small_files("phi35", tmp_path / "model")
    content, word = BROKEN[case]
    (folder / name).write_bytes(content)
    refuse(folder, name, word)


def test_files_past_their_bounds_are_refused_unread(tmp_path: Path) -> None:
    """Sparse files: whoever reads them is slow and large, whoever looks first is neither."""
    for name, size in (
        ("tokenizer.json", 65 << 20),
        ("tokenizer_config.json", 17 << 20),
        ("added_tokens.json", 17 << 20),
        ("tokenizer.model", 1 << 40),
    ):
        folder = small_files("phi35", tmp_path / name)
        os.truncate(folder / name, size)
        refuse(folder, name)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, "no tokenizer", "tokenizer.model")
    folder = small_files("phi35", tmp_path / "model", "tokenizer.json", "tokenizer.model")
    refuse(folder, "no tokenizer", "tokenizer.model")
    folder = small_files("phi4mini", tmp_path / "bpe", "tokenizer.json", "merges.txt")
    refuse(folder, "merges.txt")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither FIFOs nor /etc")
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "chat_template.jinja"])
def test_links_out_of_the_folder_and_fifos_are_refused(tmp_path: Path, name: str) -> None:
    folder = small_files("phi35", tmp_path / "model")
    edit(folder / "tokenizer_config.json", lambda value: value.pop("chat_template"))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/etc/passwd")
    refuse(folder, name, "outside")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refuse(folder, name, "no regular file")


@pytest.mark.skipif(sys.platform == "win32", reason="links need privileges on Windows")
def test_a_hub_caches_links_are_followed(tmp_path: Path) -> None:
    blobs = tmp_path / "models--owner--name" / "blobs"
    folder = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    small_files("phi35", blobs)
    folder.mkdir(parents=True)
    for file in blobs.iterdir():
        (folder / file.name).symlink_to(Path("../../blobs") / file.name)
    assert room.load(folder, vocab_size=ROWS).tokens[1] == "<s>"


# Vocabularies


@pytest.mark.parametrize("rows", [0, -1, 1 << 40])
def test_rows_that_no_embedding_has_are_refused(rows: int) -> None:
    refuse(DATA / "phi35", "vocab_size", rows=rows)


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
def test_a_vocabulary_larger_than_the_embedding_is_refused(fixture: str) -> None:
    refuse(DATA / fixture, "4009 rows", rows=4009)
    refuse(DATA / fixture, "100", rows=100)


BPE_CHANGES: dict[str, tuple[Change, str]] = {
    "an id past the rows": (lambda v: v["model"]["vocab"].update(zz=ROWS), "4096"),
    "a negative id": (lambda v: v["model"]["vocab"].update(zz=-1), "-1"),
    "a huge id": (lambda v: v["model"]["vocab"].update(zz=10**400), "63 bits"),
    "an id that is no number": (lambda v: v["model"]["vocab"].update(zz="1"), "a string"),
    "an id that is true": (lambda v: v["model"]["vocab"].update(zz=True), "a boolean"),
    "two tokens with an id": (lambda v: v["model"]["vocab"].update(zz=5), "the id 5"),
    "a token named as padding": (
        lambda v: v["model"]["vocab"].update({"[PAD4050]": 4051}),
        "'[PAD4050]'",
    ),
    "an empty token": (lambda v: v["model"]["vocab"].update({"": 4050}), "empty"),
    "a token with a NUL": (lambda v: v["model"]["vocab"].update({"a\0b": 4050}), "NUL"),
    "a vocabulary that is a list": (lambda v: v["model"].update(vocab=[]), "an array"),
    "no vocabulary": (lambda v: v["model"].pop("vocab"), "null"),
    "no model": (lambda v: v.pop("model"), "null"),
    "no merges": (lambda v: v["model"].update(merges=[]), "no merges"),
    "merges that are no list": (lambda v: v["model"].update(merges={}), "an object"),
    "a merge of three": (lambda v: v["model"]["merges"].insert(0, ["a", "b", "c"]), "merge 0"),
    "a merge of numbers": (lambda v: v["model"]["merges"].insert(0, [1, 2]), "merge 0"),
    "a merge of nothing": (lambda v: v["model"]["merges"].insert(0, "a "), "merge 0"),
    "a merge of no tokens": (lambda v: v["model"]["merges"].insert(0, ["qqq", "a"]), "'qqq'"),
    "an added id past the rows": (lambda v: v["added_tokens"][0].update(id=ROWS), "4096"),
    "an added token without id": (lambda v: v["added_tokens"][0].pop("id"), "null"),
    "an added token without text": (lambda v: v["added_tokens"][0].pop("content"), "null"),
    "an added token's flag": (lambda v: v["added_tokens"][0].update(rstrip="no"), "rstrip"),
    "an added token of two names": (
        lambda v: v["added_tokens"][0].update(content="<other>"),
        "'<other>'",
    ),
    "an added token over another": (
        lambda v: v["added_tokens"].append({"id": 5, "content": "<new>"}),
        "'<new>'",
    ),
    "an added token twice": (
        lambda v: v["added_tokens"].append({"id": 4050, "content": "<|user|>"}),
        "<|user|>",
    ),
}


@pytest.mark.parametrize("case", BPE_CHANGES)
def test_damaged_byte_level_tokenizers_are_refused(tmp_path: Path, case: str) -> None:
    folder = small_files("phi4mini", tmp_path / "model")
    change, word = BPE_CHANGES[case]
    edit(folder / "tokenizer.json", change)
    refuse(folder, "tokenizer.json", word)


UNSUPPORTED: dict[str, tuple[str, Change, str]] = {
    "unigram": ("phi4mini", lambda v: v["model"].update(type="Unigram"), "Unigram"),
    "word ends": ("phi4mini", lambda v: v["model"].update(end_of_word_suffix="</w>"), "</w>"),
    "ignored merges": (
        "phi4mini",
        lambda v: v["model"].update(ignore_merges=True, merges=v["model"]["merges"][:-1]),
        "ignore",
    ),
    "normalized bytes": ("phi4mini", lambda v: v.update(normalizer={"type": "NFC"}), "NFC"),
    "lower case": ("phi35", lambda v: v.update(normalizer={"type": "Lowercase"}), "Lowercase"),
    "split pieces": ("phi35", lambda v: v.update(pre_tokenizer={"type": "Punctuation"}), "Punct"),
    "BERT's frame": (
        "phi4mini",
        lambda v: v.update(post_processor={"type": "BertProcessing"}),
        "BertProcessing",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_kinds_that_llama_cpp_cannot_express_are_refused(tmp_path: Path, case: str) -> None:
    fixture, change, word = UNSUPPORTED[case]
    folder = small_files(fixture, tmp_path / "model")
    (folder / "tokenizer.model").unlink(missing_ok=True)
    edit(folder / "tokenizer.json", change)
    refuse(folder, "tokenizer.json", word, error=UnsupportedError)


CONFIG_CHANGES: dict[str, tuple[Change, str]] = {
    "an id past the rows": (
        lambda v: v["added_tokens_decoder"].update({"4096": {"content": "<x>"}}),
        "4096",
    ),
    "an id that is no number": (
        lambda v: v["added_tokens_decoder"].update({"-1": {"content": "<x>"}}),
        "'-1'",
    ),
    "a token that is a string": (lambda v: v["added_tokens_decoder"].update({"5": "x"}), "string"),
    "tokens that are a list": (lambda v: v.update(added_tokens_decoder=[1]), "an array"),
    "a template that is a number": (lambda v: v.update(chat_template=1), "a number"),
    "a template without text": (lambda v: v.update(chat_template=[{"name": "x"}]), "null"),
    "a template without name": (lambda v: v.update(chat_template=[{"template": "x"}]), "null"),
    "too many templates": (
        lambda v: v.update(chat_template=[{"name": f"t{i}", "template": ""} for i in range(99)]),
        "99",
    ),
    "a template of 5 MB": (lambda v: v.update(chat_template="x" * (5 << 20)), "4194304"),
}


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
@pytest.mark.parametrize("case", CONFIG_CHANGES)
def test_damaged_configs_are_refused(tmp_path: Path, fixture: str, case: str) -> None:
    folder = small_files(fixture, tmp_path / "model")
    change, word = CONFIG_CHANGES[case]
    edit(folder / "tokenizer_config.json", change)
    refuse(folder, "tokenizer_config.json", word)


def test_a_chat_template_of_a_gigabyte_is_refused_unread(tmp_path: Path) -> None:
    folder = small_files("phi35", tmp_path / "model")
    edit(folder / "tokenizer_config.json", lambda value: value.pop("chat_template"))
    (folder / "chat_template.jinja").touch()
    os.truncate(folder / "chat_template.jinja", 1 << 30)
    refuse(folder, "chat_template.jinja", "1073741824", "4194304")


def test_templates_whose_names_become_one_key_are_refused(tmp_path: Path) -> None:
    folder = small_files("phi35", tmp_path / "model")
    named = [{"name": name, "template": name} for name in ("a b", "a_b")]
    edit(folder / "tokenizer_config.json", lambda value: value.update(chat_template=named))
    tokenizer = room.load(folder, vocab_size=ROWS)
    with pytest.raises(FormatError, match="a_b"):
        room.gguf_metadata(tokenizer)


# tokenizer.model


def field(number: int, wire: int, payload: bytes) -> bytes:
    """A protobuf field of less than 128 bytes."""
    size = bytes([len(payload)]) if wire == 2 else b""
    return bytes([number << 3 | wire]) + size + payload


def piece(text: bytes, score: float = 0.0, kind: int = 1) -> bytes:
    inner = field(1, 2, text) + field(2, 5, struct.pack("<f", score)) + field(3, 0, bytes([kind]))
    return field(1, 2, inner)


BPE = field(2, 2, field(3, 0, b"\x02"))
BYTES = b"".join(piece(f"<0x{byte:02X}>".encode(), 0.0, 6) for byte in range(256))
MODELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no pieces"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
    "text": (b"<!DOCTYPE html>", "no SentencePiece model"),
    "a field past the end": (BYTES + b"\x0a\x7f" + b"x", "past its message's end"),
    "a length of 2^63": (b"\x0a" + b"\xff" * 8 + b"\x7f", "past its message's end"),
    "a number of 11 bytes": (b"\x08" + b"\xff" * 11, "longer than 64 bits"),
    "a number cut short": (BYTES + b"\x08\xff", "within a number"),
    "field number 0": (b"\x02\x00", "number 0"),
    "a group": (b"\x0b", "wire type 3"),
    "a piece that is not UTF-8": (BYTES + piece(b"\xff") + BPE, "not UTF-8"),
    "a score that is NaN": (BYTES + piece(b"a", float("nan")) + BPE, "no number"),
    "an infinite score": (BYTES + piece(b"a", float("inf")) + BPE, "no number"),
    "an unknown type": (BYTES + piece(b"a", 0.0, 9) + BPE, "type 9"),
    "a piece twice": (BYTES + piece(b"a") * 2 + BPE, "both 'a'"),
    "an empty piece": (BYTES + piece(b"") + BPE, "empty"),
    "no byte pieces": (piece(b"a") + BPE, "byte pieces"),
    "more pieces than rows": (b"\x0a\x00" * 1_000_000, "301"),
}


@pytest.mark.parametrize("case", MODELS)
def test_damaged_sentencepiece_models_are_refused(tmp_path: Path, case: str) -> None:
    content, word = MODELS[case]
    (tmp_path / "tokenizer.model").write_bytes(content)
    refuse(tmp_path, "tokenizer.model", word, rows=301)


def test_a_unigram_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(BYTES + piece(b"a"))
    refuse(tmp_path, "a unigram model", rows=300, error=UnsupportedError)
    (tmp_path / "tokenizer.model").write_bytes(BYTES + piece(b"a") + BPE)
    assert room.load(tmp_path, vocab_size=300).tokens[256] == "a"


def test_every_truncation_of_a_model_is_refused_or_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """A cut between two pieces is a sound message, as protobuf has no end mark; no cut may crash."""
    whole = (DATA / "phi35" / "tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    for size in range(0, len(whole), 997):
        path.write_bytes(whole[:size])
        with pytest.raises(PhiquantError):  # the model's type stands behind the pieces
            room.load(tmp_path, vocab_size=ROWS)
