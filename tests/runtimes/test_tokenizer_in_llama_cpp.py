"""llama.cpp, given phiquant's metadata, tokenizes as Hugging Face's tokenizers do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import phiquant as pq

try:
    import llama_cpp
    from tokenizers import Tokenizer
except ImportError as error:
    pytest.fail(f"{error}: pip install 'phiquant[test]'", pytrace=False)

DATA = Path(__file__).parents[1] / "data"
FIXTURES = ("phi35", "phi4mini", "phi3win")
HARD: dict[str, Any] = json.loads((DATA / "hard_strings.json").read_text(encoding="utf-8"))
AGREE: dict[str, list[str]] = HARD["agree"]

# What no metadata can mend. Each is asserted to be still so, to be noticed when llama.cpp mends it.
#
# "white space beyond ASCII after a token with rstrip": tokenizer_st_partition in llama-vocab.cpp
# asks isspace of single bytes, which knows ASCII's white space only. Hugging Face strips every
# character with Unicode's White_Space property, U+00A0 and U+3000 among them.
#
# "combining mark before a sign and letters": where the o200k pattern says \p{L} or \p{M},
# llama.cpp's pattern for "gpt-4o" says \p{L} alone. A mark then begins a run of signs, and that run
# takes the sign that o200k leaves to the word after it.
DIFFER: dict[str, dict[str, list[str]]] = HARD["differ"]

Encode = Callable[[str], list[int]]


def hugging_face(folder: Path) -> Encode:
    """Ids as ``tokenizer.json`` gives them, without those that are added around a text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


@contextmanager
def llama(path: Path) -> Iterator[Encode]:
    """Ids as llama.cpp gives them, special tokens in the text recognized."""
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    try:
        yield lambda text: list(model.tokenize(text.encode("utf-8"), add_bos=False, special=True))
    finally:
        model.close()


@pytest.fixture(scope="module", params=FIXTURES)
def both(request: pytest.FixtureRequest, converted: Any) -> Iterator[tuple[str, Encode, Encode]]:
    """The fixture's name, and how Hugging Face and llama.cpp encode with it."""
    with llama(converted(request.param, "f16")) as encode:
        yield request.param, hugging_face(DATA / request.param), encode


def test_there_are_at_least_200_hard_strings_in_every_kind_of_trouble() -> None:
    strings = [text for group in AGREE.values() for text in group]
    assert len(strings) == len(set(strings)) >= 200
    assert all(len(group) >= 8 for group in AGREE.values())


@pytest.mark.parametrize("group", AGREE)
def test_llama_cpp_tokenizes_hard_strings_as_hugging_face_does(
    both: tuple[str, Encode, Encode], group: str
) -> None:
    _, wanted, got = both
    wrong = [ascii(text) for text in AGREE[group] if got(text) != wanted(text)]
    assert not wrong


def test_llama_cpp_tokenizes_prose_as_hugging_face_does(both: tuple[str, Encode, Encode]) -> None:
    _, wanted, got = both
    text = (DATA / "eval.txt").read_text(encoding="utf-8")
    for begin in range(0, len(text), 20_000):
        piece = text[begin : begin + 20_000]
        assert got(piece) == wanted(piece)


@pytest.mark.parametrize("reason", DIFFER)
def test_the_known_differences_are_still_llama_cpps_own(
    both: tuple[str, Encode, Encode], reason: str
) -> None:
    name, wanted, got = both
    if name not in DIFFER[reason]["fixtures"]:
        # The reason lies in the other kind of tokenizer: here the strings are as good as any.
        wrong = [ascii(text) for text in DIFFER[reason]["strings"] if got(text) != wanted(text)]
        assert not wrong
        return
    same = [ascii(text) for text in DIFFER[reason]["strings"] if got(text) == wanted(text)]
    assert not same


@pytest.mark.parametrize("name", ["my-model", "Phi 3 Tuned"])
def test_newlines_after_role_tokens_vanish_whatever_the_models_name(
    tmp_path: Path, name: str
) -> None:
    """llama.cpp knows rstrip from general.name alone, which is the folder's name."""
    folder = tmp_path / name
    shutil.copytree(DATA / "phi35", folder)
    pq.convert(folder, to="gguf:f16", out=tmp_path / "model.gguf")
    wanted = hugging_face(folder)
    with llama(tmp_path / "model.gguf") as got:
        wrong = [ascii(text) for text in AGREE["special"] if got(text) != wanted(text)]
    assert not wrong


def test_a_byte_level_tokenizer_loads_whatever_the_models_name(tmp_path: Path) -> None:
    """llama.cpp refuses "phi3" in general.name where the vocabulary lacks Phi-3's tokens."""
    folder = tmp_path / "better-than-phi3"
    shutil.copytree(DATA / "phi4mini", folder)
    pq.convert(folder, to="gguf:f16", out=tmp_path / "model.gguf")
    wanted = hugging_face(folder)
    with llama(tmp_path / "model.gguf") as got:
        wrong = [ascii(text) for text in AGREE["special"] if got(text) != wanted(text)]
    assert not wrong


@pytest.mark.parametrize("name", ["phi35", "phi3win"])
def test_tokenizer_json_alone_is_enough_for_llama_cpp(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    shutil.copytree(DATA / name, folder, ignore=shutil.ignore_patterns("tokenizer.model"))
    pq.convert(folder, to="gguf:f16", out=tmp_path / "model.gguf")
    wanted = hugging_face(folder)
    with llama(tmp_path / "model.gguf") as got:
        wrong = [
            ascii(text) for group in AGREE.values() for text in group if got(text) != wanted(text)
        ]
    assert not wrong
