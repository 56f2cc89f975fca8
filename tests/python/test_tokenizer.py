"""Tokenizers as llama.cpp's converter describes them; golden/README.md says how its answers were recorded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phiquant import tokenizer as room
from phiquant.errors import UnsupportedError
from phiquant.tokenizer import Tokenizer, TokenType

TESTS = Path(__file__).parents[1]
DATA = TESTS / "data"
RECORDED = json.loads((TESTS / "golden" / "converter-metadata.json").read_text())
GOLDEN = RECORDED["models"]
FIXTURES = ("phi35", "phi4mini", "phi3win")
ROWS = 4096
WEIGHTS = shutil.ignore_patterns("*.safetensors", "*.npz", "*.gguf")

Copy = Callable[..., Path]
Json = dict[str, Any]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """copy(fixture, without=[names]) gives a copy of the fixture's small files."""

    def make(fixture: str, *, without: tuple[str, ...] = ()) -> Path:
        folder = tmp_path / f"{fixture}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(DATA / fixture, folder, ignore=WEIGHTS)
        for name in without:
            (folder / name).unlink()
        return folder

    return make


def edit(path: Path, change: Callable[[Json], Any]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def load(folder: Path) -> Tokenizer:
    return room.load(folder, vocab_size=ROWS)


def digest(values: Any, item: str) -> str:
    """As tests/golden/make_converter_metadata.py takes it."""
    found = hashlib.sha256()
    if item != "string":
        found.update(np.asarray(values, dtype=item).tobytes())
        return found.hexdigest()
    for text in values:
        raw = text.encode("utf-8")
        found.update(len(raw).to_bytes(8, "little") + raw)
    return found.hexdigest()


def assert_golden(tokenizer: Tokenizer, fixture: str) -> None:
    """Keys, order, types and values are the converter's."""
    assert_recorded(tokenizer, GOLDEN[fixture]["metadata"])


def assert_recorded(tokenizer: Tokenizer, metadata: list[Json]) -> None:
    found = room.gguf_metadata(tokenizer)
    wanted = [e for e in metadata if e["key"].startswith("tokenizer.")]
    assert [(key, type_) for key, type_, _ in found] == [(e["key"], e["type"]) for e in wanted]
    for (key, type_, value), entry in zip(found, wanted, strict=True):
        if "sha256" not in entry:
            assert value == entry["value"], key
            continue
        assert isinstance(value, (list, np.ndarray)) and len(value) == entry["count"]
        assert list(value[:5]) == entry["first"] and list(value[-3:]) == entry["last"], key
        assert digest(value, type_.removeprefix("array:")) == entry["sha256"], key


# The converter's answers


@pytest.mark.parametrize("fixture", FIXTURES)
def test_metadata_equal_the_converters(fixture: str) -> None:
    assert_golden(load(DATA / fixture), fixture)


@pytest.mark.parametrize("fixture", ["phi35", "phi3win"])
def test_tokenizer_json_alone_gives_what_tokenizer_model_gives(copy: Copy, fixture: str) -> None:
    folder = copy(fixture, without=("tokenizer.model", "added_tokens.json"))
    assert_golden(load(folder), fixture)


def test_merges_as_strings_are_merges_as_pairs(copy: Copy) -> None:
    for fixture, without in (("phi4mini", ()), ("phi35", ("tokenizer.model",))):
        folder = copy(fixture, without=without)

        def join(value: Json) -> None:
            assert isinstance(value["model"]["merges"][0], list)
            value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]

        edit(folder / "tokenizer.json", join)
        assert_golden(load(folder), fixture)


def test_a_file_without_flags_beside_config_json_still_loads(copy: Copy) -> None:
    folder = copy("phi35", without=("tokenizer.json", "tokenizer_config.json"))
    tokenizer = load(folder)
    assert tokenizer.tokens[4010] == "<|user|>"
    assert tokenizer.types[4010] == TokenType.USER_DEFINED  # nothing says that it is special
    assert tokenizer.special_ids == {"bos": 1, "eos": 4000, "pad": 4000}
    assert tokenizer.add == {} and tokenizer.chat_templates == ()


def change(value: Json, changes: Json) -> None:
    """As tests/golden/make_converter_metadata.py does it."""
    for key, new in changes.items():
        old = value.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            change(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            old.extend(new)
        else:
            value[key] = new


@pytest.mark.parametrize("variant", RECORDED["variants"], ids=lambda variant: variant["name"])
def test_fine_tunes_and_missing_files_are_read_as_the_converter_reads_them(
    copy: Copy, variant: Json
) -> None:
    folder = copy(variant["fixture"], without=tuple(variant.get("without", ())))
    for name, changes in variant.get("changes", {}).items():
        edit(folder / name, lambda value, changes=changes: change(value, changes))
    assert_recorded(load(folder), variant["metadata"])


# Padding and types


@pytest.mark.parametrize("fixture", FIXTURES)
def test_rows_without_a_token_are_padded(fixture: str) -> None:
    tokenizer = load(DATA / fixture)
    known = 4011 if tokenizer.kind == "sentencepiece" else 4010
    assert tokenizer.vocab_size == len(tokenizer.tokens) == ROWS == len(tokenizer.types)
    assert tokenizer.tokens[known:] == tuple(f"[PAD{i}]" for i in range(known, ROWS))
    assert (tokenizer.types[known:] == TokenType.UNUSED).all()
    assert (tokenizer.types[:known] != TokenType.UNUSED).all()


def test_a_description_cannot_be_changed() -> None:
    tokenizer = load(DATA / "phi35")
    with pytest.raises(AttributeError):
        tokenizer.pre = "gpt-2"  # type: ignore[misc]
    with pytest.raises(ValueError):
        tokenizer.types[0] = 1
    with pytest.raises(TypeError):
        tokenizer.special_ids["bos"] = 2  # type: ignore[index]


# Fine-tunes with tokens of their own


def added(index: int, content: str, **flags: bool) -> Json:
    plain = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), False)
    return {"id": index, "content": content, **plain, **flags}


@pytest.mark.parametrize("without", [(), ("tokenizer.model",)])
def test_a_sentencepiece_fine_tune_keeps_its_tokens(copy: Copy, without: tuple[str, ...]) -> None:
    folder = copy("phi35", without=without)
    new = [added(4011, "<tool>", special=True), added(4013, "▁two words", rstrip=True)]
    edit(folder / "tokenizer.json", lambda value: value["added_tokens"].extend(new))
    tokenizer = load(folder)
    assert tokenizer.tokens[4010:4015] == (
        *("<|user|>", "<tool>", "[PAD4012]", "▁two words", "[PAD4014]"),
    )
    assert list(tokenizer.types[4011:4014]) == [
        *(TokenType.CONTROL, TokenType.UNUSED, TokenType.USER_DEFINED),
    ]
    assert tokenizer.scores is not None
    assert list(tokenizer.scores[4011:4014]) == [-1000, -10000, -1000]
    assert [t.rstrip for t in tokenizer.added_tokens if t.id > 4010] == [False, True]


def test_a_byte_level_fine_tune_keeps_its_tokens(copy: Copy) -> None:
    folder = copy("phi4mini")
    new = [
        added(4010, "<tool>", special=True),
        added(4011, "<|looks|>"),
        added(4012, "▁plain", normalized=True),
    ]
    edit(folder / "tokenizer.json", lambda value: value["added_tokens"].extend(new))
    edit(
        folder / "tokenizer_config.json",
        lambda value: value["added_tokens_decoder"].update({"4013": {"content": "<config>"}}),
    )
    tokenizer = load(folder)
    assert tokenizer.tokens[4010:4014] == ("<tool>", "<|looks|>", " plain", "<config>")
    assert list(tokenizer.types[4010:4014]) == [
        *(TokenType.CONTROL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.USER_DEFINED),
    ]


def test_a_class_of_transformers_5_is_known_by_its_contents(copy: Copy) -> None:
    for fixture, without in (("phi4mini", ()), ("phi35", ("tokenizer.model",))):
        folder = copy(fixture, without=without)
        edit(
            folder / "tokenizer_config.json",
            lambda value: value.update(tokenizer_class="TokenizersBackend"),
        )
        assert_golden(load(folder), fixture)


# Scores out of merges


def pieces_to_json(scores: dict[str, float], path: Path) -> None:
    """A tokenizer.json as Hugging Face's converter of Llama tokenizers makes it from scored pieces.

    Every way to put a piece together, by score from the highest, in the pieces' order where equal.
    """
    texts = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *scores]
    ids = {text: index for index, text in enumerate(texts)}
    merges = [
        (text[:cut], text[cut:])
        for text in scores
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    merges.sort(key=lambda pair: -scores[pair[0] + pair[1]])
    space = "\u2581"
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": space}
    prepend = {"type": "Prepend", "prepend": space}
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": ids}
    tokenizer = {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
        "model": {**model, "merges": merges},
    }
    path.write_text(json.dumps(tokenizer))


def recovered(scores: dict[str, float], folder: Path) -> dict[str, float]:
    pieces_to_json(scores, folder / "tokenizer.json")
    tokenizer = room.load(folder, vocab_size=len(scores) + 300)
    assert tokenizer.scores is not None
    return {text: float(tokenizer.scores[tokenizer.tokens.index(text)]) for text in scores}


def test_scores_of_a_trained_vocabulary_come_back_bit_for_bit(tmp_path: Path) -> None:
    texts = ["ab", "abc", "▁a", "▁ab", "▁▁", "bc", "▁", "a", "b", "c"]
    scores = {text: -float(index) for index, text in enumerate(texts)}
    found = recovered(scores, tmp_path)
    assert found == scores
    assert np.signbit(found["ab"])  # the trainer's first score is -0.0


def test_runs_of_spaces_behind_everything_come_back_as_in_llamas_vocabulary(
    tmp_path: Path,
) -> None:
    """Phi-3's published vocabulary is Llama's: id 259 is two spaces with the score -1e9."""
    texts = ["▁▁", "▁t", "er", "▁▁▁▁", "▁te", "▁ter", "▁▁▁", "t", "e", "r", "▁"]
    scores = {
        text: -1e9 if not text.strip("▁") else -float(index) for index, text in enumerate(texts)
    }
    assert recovered(scores, tmp_path) == scores


def test_other_scores_come_back_in_their_order_with_their_ties(tmp_path: Path) -> None:
    scores = {"abc": -7.0, "ab": -1.5, "bc": -3.0, "cab": -7.0, "ca": -2.0}
    scores.update(a=-9.0, b=-9.0, c=-9.0)
    found = recovered(scores, tmp_path)
    by_rank = sorted(["abc", "ab", "bc", "cab", "ca"], key=lambda text: -scores[text])
    assert sorted(by_rank, key=lambda text: -found[text]) == by_rank
    assert min(found[text] for text in by_rank) > max(found[text] for text in "abc")


def test_merges_that_no_sentencepiece_model_has_are_refused(tmp_path: Path) -> None:
    pieces_to_json(
        {"ab": 0, "abc": -1, "bc": -2, "a": -3, "b": -4, "c": -5}, tmp_path / "tokenizer.json"
    )
    edit(tmp_path / "tokenizer.json", lambda value: value["model"]["merges"].remove(["a", "bc"]))
    with pytest.raises(UnsupportedError, match=r"lack 'a' \+ 'bc'.*tokenizer\.model"):
        room.load(tmp_path, vocab_size=300)


# How byte-level tokenizers split text

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str, behavior: object = "Isolated", invert: bool = False) -> Json:
    steps: list[Json] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]
    return {"type": "Sequence", "pretokenizers": steps}


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (split(CL100K, "Removed", True), "dbrx"),  # as Phi-4's is published
        (split(CL100K), "dbrx"),
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "gpt-2"),
        ({"type": "ByteLevel", "add_prefix_space": False}, "gpt-2"),
    ],
)
def test_the_split_pattern_names_the_pre_tokenizer(
    copy: Copy, pre_tokenizer: Json, name: str
) -> None:
    folder = copy("phi4mini")
    edit(folder / "tokenizer.json", lambda value: value.update(pre_tokenizer=pre_tokenizer))
    assert load(folder).pre == name


def test_an_unknown_split_pattern_is_shown(copy: Copy) -> None:
    folder = copy("phi4mini")
    edit(folder / "tokenizer.json", lambda value: value.update(pre_tokenizer=split(r"\d|\D+")))
    with pytest.raises(UnsupportedError, match=r"\\\\d\|\\\\D\+.*Phi-4-mini") as caught:
        load(folder)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        {"type": "ByteLevel", "add_prefix_space": True},
        split(CL100K, "Removed", False),
        split(CL100K, ["Isolated"]),  # no text, and without a hash
        {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]},
    ],
)
def test_other_pre_tokenizers_are_refused(copy: Copy, pre_tokenizer: Json | None) -> None:
    folder = copy("phi4mini")
    edit(folder / "tokenizer.json", lambda value: value.update(pre_tokenizer=pre_tokenizer))
    with pytest.raises(UnsupportedError):
        load(folder)


def test_vocab_json_and_merges_txt_are_enough_where_one_pattern_fits(copy: Copy) -> None:
    whole = load(DATA / "phi4mini")
    parts = load(copy("phi4mini", without=("tokenizer.json",)))
    assert parts.pre == whole.pre == "gpt-4o"
    assert parts.tokens == whole.tokens and parts.merges == whole.merges
    assert np.array_equal(parts.types, whole.types)


def test_vocab_json_alone_does_not_guess(copy: Copy) -> None:
    folder = copy("phi4mini", without=("tokenizer.json",))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    kept = {text: index for text, index in vocabulary.items() if len(text) == 1}
    (folder / "vocab.json").write_text(json.dumps(kept))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UnsupportedError, match=r"none of the known.*tokenizer\.json"):
        load(folder)


# What is added around a text


@pytest.mark.parametrize("case", RECORDED["special_tokens"])
def test_special_tokens_are_found_where_the_converter_finds_them(copy: Copy, case: Json) -> None:
    folder = copy("phi35")
    post_processor = case["post_processor"]
    edit(folder / "tokenizer.json", lambda value: value.update(post_processor=post_processor))
    edit(folder / "tokenizer_config.json", lambda value: value.update(case["config"]))
    tokenizer = load(folder)
    assert list(tokenizer.special_ids.items()) == list(case["ids"].items())
    assert list(tokenizer.add.items()) == list(case["add"].items())


# Chat templates


def test_named_templates_are_written_as_gguf_py_writes_them(copy: Copy) -> None:
    folder = copy("phi35")
    named = [
        {"name": "tool use", "template": "T"},
        {"name": "default", "template": "D"},
        {"name": "rag", "template": "R"},
    ]
    edit(folder / "tokenizer_config.json", lambda value: value.update(chat_template=named))
    tokenizer = load(folder)
    assert tokenizer.templates_named and tokenizer.chat_template == "D"
    assert room.gguf_metadata(tokenizer)[-4:] == [
        ("tokenizer.chat_template.tool_use", "string", "T"),
        ("tokenizer.chat_template.rag", "string", "R"),
        ("tokenizer.chat_templates", "array:string", ["tool_use", "rag"]),
        ("tokenizer.chat_template", "string", "D"),
    ]


def test_templates_in_files_of_their_own_are_found(copy: Copy) -> None:
    folder = copy("phi35")
    edit(folder / "tokenizer_config.json", lambda value: value.pop("chat_template"))
    (folder / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert load(folder).chat_template == "from json"
    (folder / "chat_template.jinja").write_text("{# é #}", encoding="utf-8")
    assert load(folder).chat_template == "{# é #}"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("R")
    tokenizer = load(folder)
    assert [(t.name, t.text) for t in tokenizer.chat_templates] == [
        *(("default", "{# é #}"), ("rag", "R")),
    ]


def test_a_template_is_never_run(copy: Copy) -> None:
    folder = copy("phi35")
    attack = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**12) %}x{% endfor %}"
    )
    edit(folder / "tokenizer_config.json", lambda value: value.update(chat_template=attack))
    assert load(folder).chat_template == attack


# The model's name, which llama.cpp reads as a flag


def test_names_follow_the_tokens_flags(copy: Copy) -> None:
    phi3, phi4 = load(DATA / "phi35"), load(DATA / "phi4mini")
    assert room.needs_phi3_name(phi3) and not room.needs_phi3_name(phi4)
    names = {
        "Phi 3 Mini 4k Instruct": "Phi-3-Mini-4k-Instruct",
        "Phi3Win": "Phi3Win",
        "My-phi-3.5": "My-phi-3.5",
        "Assistant": "Assistant (Phi-3)",
    }
    assert {name: room.general_name(phi3, name) for name in names} == names
    assert room.general_name(phi4, "Phi 4 Mini Instruct") == "Phi 4 Mini Instruct"
    assert room.general_name(phi4, "Better than Phi-3 and phi3") == "Better than Phi 3 and phi 3"

    def plain(value: Json) -> None:
        for token in value["added_tokens"]:
            token["rstrip"] = False

    folder = copy("phi35")
    edit(folder / "tokenizer.json", plain)
    assert not room.needs_phi3_name(load(folder))


def test_ignored_merges_change_nothing_where_merges_lead_to_every_token(tmp_path: Path) -> None:
    """Vocabularies converted from tiktoken's set the flag."""
    shutil.copytree(DATA / "phi4mini", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["ignore_merges"] = True
    path.write_text(json.dumps(value))
    plain = room.load(DATA / "phi4mini", vocab_size=4096)
    flagged = room.load(tmp_path / "model", vocab_size=4096)
    assert (flagged.tokens, flagged.merges) == (plain.tokens, plain.merges)
