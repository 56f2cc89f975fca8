"""llama.cpp through llama-cpp-python's bindings: a loaded GGUF gives tokens and logits."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant.errors import FormatError
from phiquant.runtimes.protocol import LoadedModel, Runtime

# Lines of llama.cpp's log that are kept, for the error that says why it refuses a file.
_LINES = 50


class LlamaCpp(Runtime):
    """Runs GGUF files of any type."""

    name = "llama.cpp"
    runs = "GGUF files"
    distribution = "llama-cpp-python"
    module = "llama_cpp"
    extra = "llama"
    # Activations are rounded to 8 bits: measured up to 3e-4 on the test models; there a rope base
    # that is wrong by a factor of two makes 0.006 to 0.013.
    divergence = 0.005
    arithmetic = "llama.cpp rounds activations"

    def recognizes(self, path: Path) -> bool:
        """A file that begins with GGUF's magic number."""
        try:
            with path.open("rb") as file:
                return file.read(4) == b"GGUF"
        except OSError:  # a folder, or not for us to read
            return False

    def load(self, path: Path, *, context: int, threads: int, exact: bool) -> Model:
        """See :meth:`Runtime.load`; without ``exact``, keys and values are float16."""
        return Model(self.package(), path, context=context, threads=threads, exact=exact)


RUNTIME = LlamaCpp()


class Model(LoadedModel):
    """A GGUF in llama.cpp; see :meth:`LlamaCpp.load`."""

    def __init__(self, api: Any, path: Path, *, context: int, threads: int, exact: bool) -> None:
        self._api = api
        self._path = path
        self._model = self._context = None
        self._past = 0
        words: list[str] = []

        @api.llama_log_callback  # type: ignore[untyped-decorator]
        def listen(level: int, text: bytes, user_data: Any) -> None:
            words.append(text.decode("utf-8", "replace"))
            del words[:-_LINES]

        self._listen = listen  # as long as llama.cpp may call it
        api.llama_log_set(listen, ctypes.c_void_p(0))
        api.llama_backend_init()
        try:
            settings = api.llama_model_default_params()
            settings.n_gpu_layers = 0
            self._model = api.llama_model_load_from_file(str(path).encode(), settings)
            if not self._model:
                raise self._refusal("does not load it", words)
            options = api.llama_context_default_params()
            options.n_ctx = options.n_batch = context
            options.n_threads = options.n_threads_batch = threads
            if exact:
                options.n_ubatch = context
                options.type_k = options.type_v = api.GGML_TYPE_F32
                options.flash_attn_type = 0
            self._context = api.llama_init_from_model(self._model, options)
            if not self._context:
                raise self._refusal("makes no context for it", words)
        except BaseException:
            self.close()
            raise
        self._vocabulary = api.llama_model_get_vocab(self._model)
        self.vocabulary = int(api.llama_vocab_n_tokens(self._vocabulary))
        self.longest = int(api.llama_model_n_ctx_train(self._model)) or None
        self.kv_bytes_per_token = self._kv_bytes(4 if exact else 2)

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
        self._forget()
        return np.array(self._feed(ids, last))

    def start(self, ids: NDArray[np.integer]) -> int:
        """Read a prompt; gives the most likely next token."""
        self._forget()
        return int(self._feed(ids, 1)[0].argmax())

    def step(self, token: int) -> int:
        """Append a token; gives the most likely next one."""
        return int(self._feed((token,), 1)[0].argmax())

    def _forget(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._past = 0

    def _feed(self, ids: NDArray[np.integer] | tuple[int], last: int) -> NDArray[np.float32]:
        """Append tokens; the logits belong to llama.cpp, until the next call."""
        api, count = self._api, len(ids)
        batch = api.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for i, token in enumerate(ids):
                batch.token[i] = int(token)
                batch.pos[i] = self._past + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = i >= count - last
            code = api.llama_decode(self._context, batch)
            if code:
                raise FormatError(
                    f"llama.cpp cannot run it (llama_decode: {code})", file=self._path
                )
        finally:
            api.llama_batch_free(batch)
        self._past += count
        found: NDArray[np.float32] = np.ctypeslib.as_array(
            api.llama_get_logits(self._context), (last, self.vocabulary)
        )
        return found

    def _kv_bytes(self, size: int) -> int:
        api, model = self._api, self._model
        head = api.llama_model_n_embd(model) // api.llama_model_n_head(model)
        return int(
            2 * size * api.llama_model_n_layer(model) * api.llama_model_n_head_kv(model) * head
        )

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
