"""phiquant's tokenizer and detokenizer graphs do what Hugging Face's tokenizers do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import openvino_peer as peer
import phiquant as pq
from phiquant import tokenizer as room
from phiquant.runtimes.openvino_genai import check_version
from phiquant.targets.openvino_tokenizer import detokenizer_graph, information, tokenizer_graph
from phiquant.targets.openvino_vocabulary import merge_pairs
from phiquant.tokenizer.pretokenizer import NAMES
from places import DATA, FIXTURES

HARD: dict[str, Any] = json.loads((DATA / "hard_strings.json").read_text(encoding="utf-8"))
# What another runtime gets wrong is as good a test.
GROUPS: dict[str, list[str]] = {
    **HARD["agree"],
    **{f"not in llama.cpp: {name}": group["strings"] for name, group in HARD["differ"].items()},
}
WEIGHTS = shutil.ignore_patterns("*.safetensors", "*.npz", "*.gguf")


class Both:
    """A tokenizer's folder in OpenVINO, and as Hugging Face reads it."""

    def __init__(self, folder: Path, out: Path, rows: int = 4096) -> None:
        described = room.load(folder, vocab_size=rows)
        graphs = {
            "tokenizer": tokenizer_graph(described, folder, max_length=8192),
            "detokenizer": detokenizer_graph(described),
        }
        core = peer.core()
        for name, graph in graphs.items():
            text = graph.xml(information(described))
            (out / f"openvino_{name}.xml").write_text(text, encoding="utf-8")
            (out / f"openvino_{name}.bin").write_bytes(graph.binary())
        paths = (out / "openvino_tokenizer.xml", out / "openvino_detokenizer.xml")
        self.tokenizer, self.detokenizer = (core.compile_model(path, "CPU") for path in paths)
        self.theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer([text])["input_ids"][0]]

    def decode(self, ids: list[int]) -> str:
        # NumPy's strings drop NULs at their end.
        return str(self.detokenizer(np.array([ids]))["string_output"][0])

    def wanted(self, ids: list[int]) -> str:
        return str(self.theirs.decode(ids, skip_special_tokens=True)).rstrip("\0")


@pytest.fixture(scope="module", params=FIXTURES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(DATA / request.param, tmp_path_factory.mktemp(request.param))


def test_there_are_at_least_200_hard_strings() -> None:
    assert len({text for group in GROUPS.values() for text in group}) >= 200


@pytest.mark.parametrize("group", GROUPS)
def test_hard_strings_get_hugging_faces_ids_and_come_back_alike(both: Both, group: str) -> None:
    for text in GROUPS[group]:
        ids = both.theirs.encode(text, add_special_tokens=False).ids
        assert both.encode(text) == ids, ascii(text)
        if ids:
            assert both.decode(ids) == both.wanted(ids), ascii(text)


def test_prose_gets_hugging_faces_ids(both: Both) -> None:
    text = (DATA / "eval.txt").read_text(encoding="utf-8")[:60000]
    assert both.encode(text) == both.theirs.encode(text, add_special_tokens=False).ids


def test_any_ids_become_hugging_faces_text(both: Both) -> None:
    random = np.random.default_rng(5)
    size = both.theirs.get_vocab_size()
    for length in random.integers(1, 24, 300):
        ids = [int(token) for token in random.integers(0, size, length)]
        assert both.decode(ids) == both.wanted(ids), ids


def test_bytes_that_are_no_utf8_become_hugging_faces_replacements(both: Both) -> None:
    random = np.random.default_rng(6)
    vocabulary = both.theirs.get_vocab()
    sentencepiece = "<0x00>" in vocabulary
    if sentencepiece:
        single = [vocabulary[f"<0x{byte:02X}>"] for byte in range(256)]
    else:
        single = list(range(256))  # GPT-2's alphabet comes first
    starts = [vocabulary[piece] for piece in ("a", "b", "the" if "the" in vocabulary else "t")]
    for trial in range(400):
        # Mostly bytes above ASCII, so that beginnings of characters are frequent.
        ids = [single[int(b)] for b in random.integers(0x70, 256, int(random.integers(1, 9)))]
        if trial % 2:
            ids.insert(int(random.integers(0, len(ids))), starts[trial % 3])
        assert both.decode(ids) == both.wanted(ids), ids


def test_rows_without_a_token_say_nothing(both: Both) -> None:
    a = both.theirs.get_vocab()["a"]
    assert both.decode([a, 4090, a]) == both.wanted([a, a])


def test_batches_are_padded_on_the_left(both: Both) -> None:
    found = both.tokenizer(["a b c d e f", "a"])
    ids, mask = found["input_ids"], found["attention_mask"]
    assert mask[0].all()
    assert mask[1].tolist() == [0] * (mask.shape[1] - mask[1].sum()) + [1] * mask[1].sum()
    assert ids[1][mask[1] == 1].tolist() == both.encode("a")


def test_pipelines_can_leave_special_tokens_in_truncate_and_pad(tmp_path: Path) -> None:
    Both(DATA / "phi35", tmp_path)
    tokenizer = peer.genai.Tokenizer(str(tmp_path))
    ids = tokenizer.encode("<|user|>\nHi there<|end|>\n<|assistant|>\n").input_ids
    assert tokenizer.decode(ids) == ["Hi there"]
    kept = tokenizer.decode(ids, skip_special_tokens=False)
    assert kept == ["<|user|> Hi there<|end|><|assistant|>"]
    assert tokenizer.encode("a b c d e f g h", truncation=True, max_length=4).input_ids.shape == [
        1,
        4,
    ]
    padded = tokenizer.encode("a", pad_to_max_length=True, max_length=9)
    assert padded.input_ids.shape == [1, 9]
    assert tokenizer.get_eos_token_id() == 4000
    assert tokenizer.get_bos_token_id() == 1


def changed(tmp_path: Path, fixture: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    folder = tmp_path / "source"
    shutil.copytree(DATA / fixture, folder, ignore=WEIGHTS)
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    # What is in the config replaces what was changed.
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["added_tokens_decoder"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("pattern", "name"), NAMES.items(), ids=NAMES.values())
def test_every_split_pattern_splits_as_hugging_face_does(
    tmp_path: Path, pattern: str, name: str
) -> None:
    def change(value: dict[str, Any]) -> None:
        steps = value["pre_tokenizer"]["pretokenizers"]
        steps[0]["pattern"]["Regex"] = pattern

    both = Both(changed(tmp_path, "phi4mini", change), tmp_path)
    for text in (text for group in GROUPS.values() for text in group):
        assert both.encode(text) == both.theirs.encode(text).ids, ascii(text)


def test_white_space_beside_special_tokens_goes_by_their_flags(tmp_path: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        for token, flags in zip(value["added_tokens"][1:], (2, 1, 3, 0), strict=False):
            token["lstrip"], token["rstrip"] = bool(flags & 1), bool(flags & 2)

    both = Both(changed(tmp_path, "phi4mini", change), tmp_path)
    for text in ("a  <|tool|>  b", " <|/tool|> \n b", "x \t<|assistant|> \u3000 y", "x <|end|> y"):
        assert both.encode(text) == both.theirs.encode(text).ids, ascii(text)


def test_the_longest_of_special_tokens_is_found_whatever_its_flags(tmp_path: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        value["added_tokens"][8]["content"] = "<|tool|>x"
        value["added_tokens"][8]["rstrip"] = True

    both = Both(changed(tmp_path, "phi4mini", change), tmp_path)
    for text in ("<|tool|>x y", "<|tool|> x", "<|tool|>xx"):
        assert both.encode(text) == both.theirs.encode(text).ids, ascii(text)


def test_a_bos_and_an_eos_are_added_where_the_template_has_them(tmp_path: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        special = {
            name: {"id": name, "ids": [number], "tokens": [name]}
            for name, number in (("<|endoftext|>", 4000), ("<|end|>", 4004))
        }
        single = [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|end|>", "type_id": 0}},
        ]
        pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
        value["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": special,
        }

    both = Both(changed(tmp_path, "phi4mini", change), tmp_path)
    ids = both.theirs.encode("a b").ids
    assert [ids[0], ids[-1]] == [4000, 4004]
    assert both.encode("a b") == ids
    tokenizer = peer.genai.Tokenizer(str(tmp_path))
    bare = tokenizer.encode("a b", add_special_tokens=False).input_ids.data
    assert bare[0].tolist() == ids[1:-1]


def test_merges_without_tokenizer_json_put_pieces_together_alike(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    shutil.copytree(DATA / "phi35", folder, ignore=WEIGHTS)
    (folder / "tokenizer.json").unlink()
    described = room.load(folder, vocab_size=4096)
    made = merge_pairs(described, folder)
    listed = merge_pairs(described, DATA / "phi35")
    # The same ways to make a piece, and pieces in the same order; the order of a piece's own ways
    # is transformers' here.
    assert sorted(made) == sorted(listed)
    order = [list(dict.fromkeys(a + b for a, b in pairs)) for pairs in (made, listed)]
    assert order[0] == order[1]


@pytest.mark.parametrize(
    ("fixture", "flag", "words"),
    [("phi4mini", "single_word", "single_word"), ("phi35", "normalized", "normalized")],
)
def test_rules_that_the_operations_do_not_have_are_refused(
    tmp_path: Path, fixture: str, flag: str, words: str
) -> None:
    def change(value: dict[str, Any]) -> None:
        value["added_tokens"][1][flag] = True

    folder = changed(tmp_path, fixture, change)
    described = room.load(folder, vocab_size=4096)
    with pytest.raises(pq.UnsupportedError, match=words):
        tokenizer_graph(described, folder, max_length=8192)


@pytest.mark.parametrize("version", ["2026.3.0.0", "2025.4.1.0", "2024.6.0.0.dev20241225"])
def test_an_older_runtime_is_refused_in_clear_words(version: str) -> None:
    with pytest.raises(pq.UnsupportedError, match=r"older than 2026\.4.*pip install"):
        check_version(version)


def test_the_pinned_runtime_and_later_ones_are_taken() -> None:
    for version in (metadata.version("openvino-tokenizers"), "2026.4.0.0", "2027.0.0.0"):
        check_version(version)
