"""Text as windows of token ids, cut as llama-imatrix and llama-perplexity cut it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phiquant.checkpoint import Checkpoint, SourceFile
from phiquant.errors import FormatError, UnsupportedError, UsageError

# Encoding takes some hundred bytes a token.
_MAX_TEXT = 1 << 27
_MAX_TOKENIZER = 1 << 28
# No tokenizer makes fewer tokens than one of so many characters, on average over a text.
_CHARACTERS = 32


def read_text(path: str | os.PathLike[str]) -> str:
    """A UTF-8 text without its last newline, which llama.cpp's tools take off, too.

    Raises
    ------
    phiquant.FormatError
        It is no UTF-8, empty, or larger than 128 MiB.
    """
    source = SourceFile.look_at(Path(path))
    if source.size > _MAX_TEXT:
        raise FormatError(
            f"has {source.size} bytes; up to {_MAX_TEXT} are read",
            file=path,
            remedy="Cut a piece out: more than a million tokens change little.",
        )
    raw = source.read(0, source.size)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError(
            f"is no UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}", file=path
        ) from None
    text = text.removesuffix("\n")
    if not text:
        raise FormatError("is empty", file=path)
    return text


def windows(
    checkpoint: Checkpoint,
    text: str,
    *,
    vocabulary: int,
    context: int,
    tokens: int | None = None,
    parse_special: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
) -> NDArray[np.int64]:
    """Token ids of a text in windows of ``context``; a rest shorter than that is left out.

    Where the model begins texts with a BOS token, it takes the place of each window's first token.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its folder holds ``tokenizer.json``.
    text : str
    vocabulary : int
        Rows of the embedding.
    context : int
        Tokens of a window.
    tokens : int, optional
        At most so many; all of the text by default.
    parse_special : bool
        Whether ``<|end|>`` and the like in the text are the special token, or plain text.
    tokenizer : str or path, optional
        Another folder that holds the model's tokenizer.

    Returns
    -------
    int64 array, shape (windows, context)

    Raises
    ------
    phiquant.UnsupportedError
        There is no ``tokenizer.json``.
    phiquant.FormatError
        It is damaged, or is another model's.
    phiquant.UsageError
        The text, or ``tokens``, is less than one window.
    """
    if tokens is not None and tokens < context:
        raise UsageError(f"{tokens} tokens are less than one window of {context}")
    folder = checkpoint.folder if tokenizer is None else Path(tokenizer)
    file = folder / "tokenizer.json"
    if not file.exists():
        raise UnsupportedError(
            "is missing, and text cannot be tokenized without it",
            file=file,
            remedy="Name the folder of the original model: --tokenizer FOLDER (tokenizer=...)."
            if checkpoint.format == "gguf"
            else "Save the tokenizer with transformers, which writes tokenizer.json.",
        )
    bos = _gguf_start(checkpoint) if checkpoint.format == "gguf" else _start(folder, vocabulary)
    # The first token is replaced, but it takes a place: llama.cpp puts a BOS before the text.
    first = [] if bos is None else [bos]
    ids = np.array(
        [*first, *_encode(file, text, tokens, parse_special)],
        np.int64,
    )
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise FormatError(
            f"makes the token {ids.max()}, and the model has {vocabulary}",
            file=file,
            remedy="Use the model's own tokenizer.",
        )
    count = min(ids.size, ids.size if tokens is None else tokens) // context
    if not count:
        raise UsageError(
            f"the text has {ids.size} tokens, less than one window of {context}",
            remedy="Give a longer text, or a smaller --context.",
        )
    cut = ids[: count * context].reshape(count, context)
    if bos is not None:
        cut[:, 0] = bos
    return cut


def _encode(file: Path, text: str, tokens: int | None, parse_special: bool) -> list[int]:
    import tokenizers

    if SourceFile.look_at(file).size > _MAX_TOKENIZER:
        raise FormatError(f"is larger than any tokenizer: {_MAX_TOKENIZER} bytes", file=file)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more exact
        raise FormatError(f"cannot be read: {str(error)[:200]}", file=file) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not parse_special
    if tokens is not None and len(text) > tokens * _CHARACTERS:
        part: list[int] = tokenizer.encode(
            text[: tokens * _CHARACTERS], add_special_tokens=False
        ).ids
        if len(part) > tokens + 64:  # the cut changes the last tokens alone
            return part[:tokens]
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _start(folder: Path, vocabulary: int) -> int | None:
    from phiquant.tokenizer import load

    description = load(folder, vocab_size=vocabulary)
    sentencepiece = description.kind == "sentencepiece"
    if not description.add.get("bos", sentencepiece):
        return None
    return description.special_ids.get("bos", 1 if sentencepiece else None)


def _gguf_start(checkpoint: Checkpoint) -> int | None:
    """llama.cpp's rule: as the file says, and else only SentencePiece's kind has a BOS, 1."""
    get = checkpoint.metadata.get
    sentencepiece = get("tokenizer.ggml.model") == "llama"
    if not get("tokenizer.ggml.add_bos_token", sentencepiece):
        return None
    bos = get("tokenizer.ggml.bos_token_id", 1 if sentencepiece else None)
    return bos if isinstance(bos, int) and not isinstance(bos, bool) else None
