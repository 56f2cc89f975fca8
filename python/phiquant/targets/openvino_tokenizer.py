"""Tokenizers as OpenVINO graphs: text to ids and back, in openvino-tokenizers' operations.

The operations are an extension of OpenVINO without a specification; the graphs have the form that
openvino-tokenizers' own converter gives them, because openvino_genai rewrites them (to leave out
special tokens, to truncate, to pad) by that form. They are tested with the version that
pyproject.toml pins. Where the converter's graphs differ from Hugging Face's tokenizers, these do
not: a text that spells a byte token (``<0x0A>``) is text, and bytes that are no UTF-8 become as
many U+FFFD as there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from phiquant.errors import UnsupportedError
from phiquant.targets.openvino_graph import Graph, Value
from phiquant.targets.openvino_vocabulary import (
    SPACE,
    alphabet,
    byte_of,
    check_bytes,
    encoder_words,
    in_alphabet,
    merge_pairs,
    strings,
    token_bytes,
)
from phiquant.tokenizer import AddedToken, Tokenizer
from phiquant.tokenizer.pretokenizer import NAMES

#: The least version of openvino-tokenizers that runs these graphs as tested.
VERSION = "2026.4.1.0"
# What a tokenizer's graph is truncated to when nothing asks for truncation.
_UNBOUNDED = (1 << 31) - 65
_REPLACEMENT = "\ufffd"
# Marks SentencePiece's byte tokens; no character of GPT-2's alphabet is near it.
_MARK = r"\x{E000}"
_ALPHABET = alphabet()
# What no XML 1.0 can hold, in whatever spelling. A template with such characters stands in its own
# file alone.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Information = list[tuple[str, object]]


def information(tokenizer: Tokenizer) -> Information:
    """What openvino_genai reads from a tokenizer's graph, as runtime information."""
    pairs: Information = [("openvino_tokenizers_version", VERSION)]
    pairs += [("add_special_tokens", "True"), ("skip_special_tokens", "True")]
    for role in ("bos", "eos", "pad"):
        if role in tokenizer.special_ids:
            pairs.append((f"{role}_token_id", tokenizer.special_ids[role]))
    if tokenizer.chat_template is not None and not _NO_XML.search(tokenizer.chat_template):
        pairs.append(("chat_template", tokenizer.chat_template))
    return pairs


def tokenizer_graph(tokenizer: Tokenizer, folder: Path, *, max_length: int) -> Graph:
    """Text to ``input_ids`` and ``attention_mask`` (i64, [batch, tokens]), padded on the left.

    Parameters
    ----------
    tokenizer : Tokenizer
    folder : path
        The checkpoint's, for the merges.
    max_length : int
        Tokens that are left where a caller asks for truncation.

    Raises
    ------
    phiquant.UnsupportedError
        Added tokens with rules that the operations don't have, or bytes without tokens.
    """
    graph = Graph("tokenizer")
    text = graph.parameter("string_input", "string", (None,))
    truncates = graph.add(
        "ReadValue",
        graph.number(False, "?"),
        version="opset6",
        variable_id="truncation",
        variable_type="dynamic",
        variable_shape="...",
    )
    begins, ends, chars = graph.add_many(
        "StringTensorUnpack", text, types=("i32", "i32", "u8"), version="opset15"
    )
    ragged = [*_rows(graph, begins), begins, ends, chars]
    pattern = graph.data(_special_pattern(tokenizer, folder).encode(), "special_tokens")
    pieces = graph.add_many(
        "SpecialTokensSplit", *ragged, pattern, types=_RAGGED_TYPES, version="extension"
    )
    if tokenizer.kind == "bpe":
        patterns = {name: pattern for pattern, name in NAMES.items()}
        split = graph.data(patterns[tokenizer.pre].encode(), "split_pattern")
        words = graph.add_many(
            "RegexSplit",
            *pieces,
            split,
            types=_RAGGED_TYPES,
            version="extension",
            behaviour="isolate",
            invert=False,
            max_splits=-1,
        )[:5]
    else:
        normalized = pieces[2:]
        if tokenizer.add_space_prefix is not False:
            normalized = _replace(graph, normalized, r"(?:^)([\s\S])", f"{SPACE}$1")
        normalized = _replace(graph, normalized, " ", SPACE)
        words = [*pieces[:2], *normalized[:3]]
    ids = _bpe(graph, tokenizer, words, folder)
    single = _template(tokenizer)
    ids = graph.add_many(
        "Truncate",
        *ids,
        graph.add(
            "Select",
            truncates,
            graph.number(max(1, max_length - len(single) + 1), "i4"),
            graph.number(_UNBOUNDED, "i4"),
            types=["i32"],
            auto_broadcast="numpy",
        ),
        graph.data(b"left", "truncation_side"),
        graph.data(b"longest_first", "truncation_mode"),
        types=("i32", "i32", "i32"),
        version="extension",
        m_num_inputs=1,
    )
    segments: list[Value] = []
    for item in single:
        if item is None:
            segments += ids
        else:
            segments += [graph.number(0, "i4"), graph.number(1, "i4"), graph.number([item], "i4")]
    segments.append(graph.number([0] * len(single), "i4"))
    begins, ends, values = graph.add_many(
        "CombineSegments", *segments, types=("i32",) * 6, version="extension"
    )[:3]
    lengths = graph.add("Subtract", ends, begins, auto_broadcast="numpy")
    longest = graph.add("ReduceMax", lengths, graph.number(0, "i4"), keep_dims=False)
    padding = tokenizer.special_ids.get("pad", tokenizer.special_ids.get("eos", 0))
    dense, mask = graph.add_many(
        "RaggedToDense",
        begins,
        ends,
        values,
        longest,
        graph.number(padding, "i4"),
        types=("i32", "boolean"),
        version="extension",
        pad_right=False,
        m_pad_max_length=False,
    )
    outputs = [("attention_mask", graph.convert(mask, "i32")), ("input_ids", dense)]
    found = [
        (name, graph.add("Convert", value, types=["i64"], tensor_names=name,
                         destination_type="i64"))
        for name, value in outputs
    ]  # fmt: skip
    graph.add("Assign", truncates, version="opset6", variable_id="truncation")
    for name, value in reversed(found):
        graph.result(value, name)
    return graph


def detokenizer_graph(tokenizer: Tokenizer) -> Graph:
    """Ids (i64, [batch, tokens]) to text, special tokens left out.

    Tokens are spelled in GPT-2's alphabet, one character a byte, until the end, so that bytes which
    are no UTF-8 can be told by a pattern and replaced as Hugging Face replaces them: for byte-level
    BPE by one U+FFFD for every longest beginning of a character, and for SentencePiece, where a run
    of byte tokens is no UTF-8 as a whole, by one for each byte of that run.
    """
    graph = Graph("detokenizer")
    ids = graph.convert(graph.parameter("token_ids", "i64", (None, None)), "i32")
    words = []
    for index, word in enumerate(token_bytes(tokenizer)):
        spelled = "".join(_ALPHABET[byte] for byte in word)
        words.append(
            (spelled if byte_of(tokenizer, index) is None else f"\ue000{spelled}").encode()
        )
    skipped = [token.id for token in tokenizer.added_tokens if token.special]
    ragged = graph.add_many(
        "VocabDecoder",
        ids,
        *strings(graph, words, "vocabulary"),
        graph.number(np.asarray(skipped, np.int32), "i4"),
        types=_RAGGED_TYPES[:5],
        version="extension",
        skip_tokens="",
    )
    begins, ends = graph.add_many(
        "FuzeRagged", *ragged[:4], types=("i32", "i32"), version="extension"
    )
    text = [begins, ends, ragged[4]]
    replacement = in_alphabet(_REPLACEMENT.encode())
    if tokenizer.kind == "bpe":
        text = _replace(graph, text, _bad_utf8(), replacement)
    else:
        text = _replace(graph, text, _bad_runs(), replacement)
        text = _replace(graph, text, _MARK, "")
        if tokenizer.add_space_prefix is not False:
            text = _replace(graph, text, f"^{_ALPHABET[ord(' ')]}", "")
    text = graph.add_many(
        "CharsToBytes",
        *_rows(graph, text[0]),
        *text,
        types=("i32", "i32", "u8"),
        version="extension",
    )
    packed = graph.add(
        "StringTensorPack",
        *text,
        types=["string"],
        version="opset15",
        tensor_names="string_output",
    )
    graph.result(packed, "string_output")
    return graph


# A ragged tensor of strings: where each row begins and ends among the strings, where each string
# begins and ends among the bytes, the bytes, and (here) which strings are to be left as they are.
_RAGGED_TYPES = ("i32", "i32", "i32", "i32", "u8", "boolean")


def _rows(graph: Graph, begins: Value) -> list[Value]:
    """Rows of one string each: 0, 1, 2, ... and 1, 2, 3, ..."""
    shape = graph.add("ShapeOf", begins, types=["i64"], version="opset3", output_type="i64")
    zero, one = graph.number(0), graph.number(1)
    count = graph.add("Gather", shape, zero, zero, version="opset8", batch_dims=0)
    end = graph.add("Add", count, one, auto_broadcast="numpy")
    ranges = [(zero, count), (one, end)]
    return [
        graph.add("Range", first, last, one, types=["i32"], version="opset4", output_type="i32")
        for first, last in ranges
    ]


def _replace(graph: Graph, text: Sequence[Value], pattern: str, new: str) -> list[Value]:
    return graph.add_many(
        "RegexNormalization",
        *text,
        graph.data(pattern.encode(), "pattern"),
        graph.data(new.encode(), "replacement"),
        types=[value.type for value in text],
        version="extension",
        global_replace=True,
    )


def _bpe(graph: Graph, tokenizer: Tokenizer, words: Sequence[Value], folder: Path) -> list[Value]:
    pairs = merge_pairs(tokenizer, folder)
    vocabulary = encoder_words(tokenizer, pairs)
    check_bytes(tokenizer, vocabulary, folder)
    return graph.add_many(
        "BPETokenizer",
        *words,
        *strings(graph, vocabulary, "vocabulary"),
        *strings(graph, [left for left, _ in pairs], "left_merges"),
        *strings(graph, [right for _, right in pairs], "right_merges"),
        *strings(graph, [t.content.encode() for t in tokenizer.added_tokens], "added_tokens"),
        graph.number([token.id for token in tokenizer.added_tokens], "i4"),
        types=("i32", "i32", "i32"),
        version="extension",
        unk_token="",
        fuse_unk=False,
        suffix_indicator="",
        end_suffix="",
        byte_fallback=False,
        cache_capacity=20000,
    )


def _template(tokenizer: Tokenizer) -> list[int | None]:
    """What a text's ids stand among: ids of special tokens, and None for the text's own."""
    single: list[int | None] = [None]
    if tokenizer.add.get("bos") and "bos" in tokenizer.special_ids:
        single.insert(0, tokenizer.special_ids["bos"])
    if tokenizer.add.get("eos") and "eos" in tokenizer.special_ids:
        single.append(tokenizer.special_ids["eos"])
    return single


def _special_pattern(tokenizer: Tokenizer, folder: Path) -> str:
    """A pattern of all added tokens, the longest first, with the white space that they swallow."""
    for token in tokenizer.added_tokens:
        if token.single_word or (token.normalized and tokenizer.kind == "sentencepiece"):
            rule = "single_word" if token.single_word else "normalized"
            raise UnsupportedError(
                f"added token {token.content!r} asks for {rule}, which OpenVINO's tokenizers "
                "don't do as Hugging Face's",
                file=folder,
            )

    def flags(token: AddedToken) -> tuple[bool, bool]:
        return token.lstrip, token.rstrip

    ordered = sorted(tokenizer.added_tokens, key=lambda t: (-len(t.content), t.content))
    parts, spaces = [], r"(?:\s*)"
    for (left, right), members in groupby(ordered, flags):
        texts = "|".join(_escaped(token.content) for token in members)
        before, after = (spaces if flag else "" for flag in (left, right))
        parts.append(f"{before}({texts}){after}")
    return "|".join(parts) or r"(\x{10FFFF}{9})"


def _escaped(text: str) -> str:
    return re.sub(r"([\\.^$|()\[\]{}*+?/<>])", r"\\\1", text)


def _utf8(unit: Callable[[str], str]) -> tuple[str, str]:
    """Patterns of one whole character of UTF-8, and of the longest beginning of one.

    Parameters
    ----------
    unit : callable
        Makes the pattern of one byte out of ranges as ``"80-BF"``, several with spaces between.
    """
    rest = unit("80-BF")
    three = [("E0", "A0-BF"), ("E1-EC EE-EF", "80-BF"), ("ED", "80-9F")]
    four = [("F0", "90-BF"), ("F1-F3", "80-BF"), ("F4", "80-8F")]
    whole = [unit("00-7F"), unit("C2-DF") + rest]
    whole += [unit(first) + unit(second) + rest for first, second in three]
    whole += [unit(first) + unit(second) + rest + rest for first, second in four]
    begun = [unit(first) + unit(second) + f"(?:{rest})?" for first, second in four]
    begun += [unit(first) + unit(second) for first, second in three]
    return "|".join(whole), "|".join([*begun, unit("00-FF")])


def _class(ranges: str) -> str:
    """A class of the alphabet's characters for ranges of bytes."""
    characters = set()
    for part in ranges.split():
        first, _, last = part.partition("-")
        characters |= {ord(_ALPHABET[b]) for b in range(int(first, 16), int(last or first, 16) + 1)}
    runs: list[list[int]] = []
    for code in sorted(characters):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "[" + "".join(rf"\x{{{a:X}}}-\x{{{b:X}}}" for a, b in runs) + "]"


def _bad_utf8() -> str:
    """What is no UTF-8: whole characters are skipped, and then the longest beginning of one."""
    whole, begun = _utf8(_class)
    return rf"(?:{whole})++(*SKIP)(*FAIL)|{begun}"


def _bad_runs() -> str:
    """Every byte token of a run that is no UTF-8 as a whole; the others are skipped as a whole."""
    whole, _ = _utf8(lambda ranges: _MARK + _class(ranges))
    return rf"(?<!{_MARK}.)(?:{whole})++(?!{_MARK})(*SKIP)(*FAIL)|{_MARK}."
