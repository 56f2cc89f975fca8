"""The neutral description of a tokenizer that every target writes from."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray


class TokenType(enum.IntEnum):
    """What a token is; the numbers are GGUF's ``tokenizer.ggml.token_type`` and SentencePiece's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text before anything else, with Hugging Face's flags.

    ``lstrip`` and ``rstrip`` swallow the white space before and after it, ``single_word`` asks for
    word boundaries, ``normalized`` matches in the normalized text, ``special`` tokens vanish when
    decoding.
    """

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """One Jinja template as text, copied and never rendered. The usual one is named ``default``."""

    name: str
    text: str


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer as data, padded to the embedding's rows.

    Attributes
    ----------
    kind : "sentencepiece" or "bpe"
        Scored pieces with byte fallback, or GPT-2's byte-level merges.
    tokens : tuple of str, length vocab_size
        As llama.cpp wants them: pieces with U+2581 for space, or byte-level characters; ``[PADi]``
        where the tokenizer knows no token ``i``.
    scores : float32 array of length vocab_size, or None for "bpe"
    types : int32 array of length vocab_size, of TokenType's numbers
    merges : tuple of str
        ``"left right"`` in rank order; empty for "sentencepiece".
    pre : str
        llama.cpp's name of the pre-tokenizer: ``default``, ``gpt-4o``, ``dbrx`` or ``gpt-2``.
    special_ids : mapping of role to id
        ``bos eos unk sep pad cls mask`` where known, in the order in which llama.cpp's converter
        finds them.
    add : mapping of role to bool
        Whether ``bos``, ``eos`` or ``sep`` is added to every text; a role that the files don't
        mention is absent.
    add_space_prefix : bool or None
        None where the runtime's default for the kind is right.
    chat_templates : tuple of ChatTemplate
    templates_named : bool
        Whether the templates stood in a list of named ones.
    added_tokens : tuple of AddedToken
        Sorted by id.
    """

    kind: Literal["sentencepiece", "bpe"]
    tokens: tuple[str, ...]
    scores: NDArray[np.float32] | None
    types: NDArray[np.int32]
    merges: tuple[str, ...]
    pre: str
    special_ids: Mapping[str, int]
    add: Mapping[str, bool]
    add_space_prefix: bool | None = None
    chat_templates: tuple[ChatTemplate, ...] = ()
    templates_named: bool = False
    added_tokens: tuple[AddedToken, ...] = field(default=())

    @property
    def vocab_size(self) -> int:
        """The embedding's rows, padding included."""
        return len(self.tokens)

    @property
    def chat_template(self) -> str | None:
        """The text of the template named ``default``, if there is one."""
        return next((t.text for t in self.chat_templates if t.name == "default"), None)


def needs_phi3_name(tokenizer: Tokenizer) -> bool:
    """Whether ``general.name`` must hold "phi-3" or "phi3", or else must not.

    GGUF has no field for ``rstrip``. llama.cpp (llama-vocab.cpp, the end of ``load``) therefore
    sets it from the lower-cased ``general.name``: with "phi-3" or "phi3" in it, every token that is
    cut out of the text swallows the white space after it, but for ``<unk>``, ``<s>`` and
    ``<|endoftext|>``. These are the published flags of Phi-3 and Phi-3.5, whose prompts have a
    newline after each role's token. The loader aborts on such a name when the vocabulary lacks one
    of ``</s>``, ``<unk>``, ``<s>`` and ``<|endoftext|>``. So where this is False the name must hold
    neither: white space would vanish, or the file would not load.
    """
    exempt = ("<unk>", "<s>", "<|endoftext|>")
    if not all(text in tokenizer.tokens for text in ("</s>", *exempt)):
        return False
    return any(token.rstrip and token.content not in exempt for token in tokenizer.added_tokens)
