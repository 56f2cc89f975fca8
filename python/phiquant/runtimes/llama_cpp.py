"""llama.cpp through llama-cpp-python's bindings: a loaded GGUF gives tokens and logits."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant.errors import FormatError, UnsupportedError

# Lines of llama.cpp's log that are kept, for the error that says why it refuses a file.
_LINES = 50


def _bindings() -> Any:
    try:
        import llama_cpp
    except ImportError:
        raise UnsupportedError(
            "llama-cpp-python is not installed, and it runs GGUF files",
            remedy="Install it: pip install 'phiquant[llama]'",
        ) from None
    return llama_cpp


class LlamaCpp:
    """A GGUF in llama.cpp, on processors alone, with a float32 KV cache; a context manager.

    Parameters
    ----------
    path : Path
    context : int
        Tokens that a sequence may have.
    threads : int

    Raises
    ------
    phiquant.UnsupportedError
        llama-cpp-python is not installed.
    phiquant.FormatError
        llama.cpp does not load the file; its words are in the error.
    """

    def __init__(self, path: Path, *, context: int, threads: int) -> None:
        self._api = _bindings()
        self._path = path
        self._model = self._context = None
        words: list[str] = []

        @self._api.llama_log_callback  # type: ignore[untyped-decorator]
        def listen(level: int, text: bytes, user_data: Any) -> None:
            words.append(text.decode("utf-8", "replace"))
            del words[:-_LINES]

        self._listen = listen  # as long as llama.cpp may call it
        self._api.llama_log_set(listen, ctypes.c_void_p(0))
        self._api.llama_backend_init()
        try:
            settings = self._api.llama_model_default_params()
            settings.n_gpu_layers = 0
            self._model = self._api.llama_model_load_from_file(str(path).encode(), settings)
            if not self._model:
                raise self._refusal("does not load it", words)
            options = self._api.llama_context_default_params()
            options.n_ctx = options.n_batch = options.n_ubatch = context
            options.n_threads = options.n_threads_batch = threads
            options.type_k = options.type_v = self._api.GGML_TYPE_F32
            options.flash_attn_type = 0
            self._context = self._api.llama_init_from_model(self._model, options)
            if not self._context:
                raise self._refusal("makes no context for it", words)
        except BaseException:
            self.close()
            raise
        self._vocabulary = self._api.llama_model_get_vocab(self._model)
        self.vocabulary = int(self._api.llama_vocab_n_tokens(self._vocabulary))

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._context = self._model = None
        # Its log goes nowhere, and not to a function that is about to be freed.
        self._api.llama_log_set(_silence(self._api), ctypes.c_void_p(0))

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text as llama.cpp makes them; special tokens in it are plain text."""
        raw = text.encode()
        room = len(raw) + 16
        found = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocabulary, raw, len(raw), found, room, True, False)
        return list(found[: max(0, count)])

    def logits(self, ids: NDArray[np.integer], last: int) -> NDArray[np.float32]:
        """Logits of the ``last`` last positions of a fresh sequence, shape (last, vocabulary)."""
        api = self._api
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        batch = api.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i] = int(token)
                batch.pos[i] = i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = i >= len(ids) - last
            code = api.llama_decode(self._context, batch)
            if code:
                raise FormatError(
                    f"llama.cpp cannot run it (llama_decode: {code})", file=self._path
                )
        finally:
            api.llama_batch_free(batch)
        found = np.ctypeslib.as_array(api.llama_get_logits(self._context), (last, self.vocabulary))
        return np.array(found, np.float32)

    def _refusal(self, what: str, words: list[str]) -> FormatError:
        lines = "".join(words).split("\n")
        said = [line.strip() for line in lines if "error" in line.lower() or "fail" in line.lower()]
        return FormatError(f"llama.cpp {what}: {'; '.join(said[:3])[:400]}", file=self._path)


_quiet: list[Any] = []


def _silence(api: Any) -> Any:
    if not _quiet:

        @api.llama_log_callback  # type: ignore[untyped-decorator]
        def say_nothing(level: int, text: bytes, user_data: Any) -> None:
            pass

        _quiet.append(say_nothing)
    return _quiet[0]
