"""llama.cpp itself, through llama-cpp-python's bindings: logits of token ids, and its own quantizer."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

try:
    import llama_cpp
except ImportError as error:
    pytest.fail(f"{error}: pip install 'phiquant[llama]'", pytrace=False)

_GGML_TYPE_F32 = 0
_FLASH_ATTENTION_OFF = 0
_words: list[str] = []


@llama_cpp.llama_log_callback
def _listen(level: int, text: bytes, user_data: Any) -> None:
    _words.append(text.decode("utf-8", "replace"))
    del _words[:-200]


llama_cpp.llama_log_set(_listen, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


def last_words() -> str:
    """The last lines that llama.cpp logged, to be shown when it refuses something."""
    return "".join(_words[-20:])


def ggml_base() -> ctypes.CDLL:
    """The library with ggml's own decoders, which libllama has loaded already."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    names = {"win32": "ggml-base.dll", "darwin": "libggml-base.dylib"}
    return ctypes.CDLL(str(folder / names.get(sys.platform, "libggml-base.so")))


class Run:
    """A loaded model with one context; its KV cache and attention are float32.

    Parameters
    ----------
    model, context
        llama.cpp's handles.
    window : int, optional
        Attend to that many last tokens only. llama.cpp's graph of ``phi3`` has no sliding window
        (phi3.cpp sets it to none); this makes one by forgetting what lies before it, token by token.
    """

    def __init__(self, model: Any, context: Any, window: int | None) -> None:
        self._model, self._context, self._window = model, context, window
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._past = 0

    def restart(self) -> None:
        """Forget all tokens."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._past = 0

    def feed(self, ids: Sequence[int], last: int = 1) -> np.ndarray:
        """Logits after each of the ``last`` last ids, which follow what was fed before."""
        step = 1 if self._window else len(ids)
        rows = []
        for begin in range(0, len(ids), step):
            part = ids[begin : begin + step]
            rows.append(self._decode(part, max(0, min(len(part), begin + step - len(ids) + last))))
        return np.concatenate(rows)

    def _decode(self, ids: Sequence[int], last: int) -> np.ndarray:
        if self._window:
            memory = llama_cpp.llama_get_memory(self._context)
            # The token itself is one of the window's: transformers masks keys at a distance of
            # the window and more.
            llama_cpp.llama_memory_seq_rm(memory, 0, 0, max(0, self._past + 1 - self._window))
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i] = int(token)
                batch.pos[i] = self._past + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = i >= len(ids) - last
            code = llama_cpp.llama_decode(self._context, batch)
            assert code == 0, f"llama_decode returned {code}\n{last_words()}"
        finally:
            llama_cpp.llama_batch_free(batch)
        self._past += len(ids)
        if not last:
            return np.empty((0, self.vocabulary), np.float32)
        logits = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (last, self.vocabulary)).copy()

    def logits(self, ids: Sequence[int], last: int) -> np.ndarray:
        """Logits of the ``last`` last positions of a fresh prompt, shape (last, vocabulary)."""
        self.restart()
        return self.feed(ids, last)

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` most likely tokens after a fresh prompt, one after the other."""
        self.restart()
        found: list[int] = []
        logits = self.feed(ids)
        while len(found) < count:
            found.append(int(logits[-1].argmax()))
            logits = self.feed(found[-1:])
        return found


@contextmanager
def running(path: Path, *, n_ctx: int = 512, window: int | None = None) -> Iterator[Run]:
    """Load a GGUF into llama.cpp, on the CPU with one thread."""
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
    assert model, f"llama.cpp does not load {path.name}:\n{last_words()}"
    try:
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = n_ctx
        # ggml spins at its barriers, where models as tiny as these lose more than they gain.
        options.n_threads = options.n_threads_batch = 1
        options.type_k = options.type_v = _GGML_TYPE_F32
        options.flash_attn_type = _FLASH_ATTENTION_OFF
        context = llama_cpp.llama_init_from_model(model, options)
        assert context, f"llama.cpp makes no context for {path.name}:\n{last_words()}"
        try:
            assert llama_cpp.llama_n_ctx(context) == n_ctx
            yield Run(model, context, window)
        finally:
            llama_cpp.llama_free(context)
    finally:
        llama_cpp.llama_model_free(model)


class _Importance(ctypes.Structure):
    """llama.h's llama_model_imatrix_data."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


def quantize(
    source: Path,
    out: Path,
    ftype: int,
    *,
    requantize: bool = False,
    pure: bool = False,
    output_type: str | None = None,
    embedding_type: str | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Run llama.cpp's quantizer, which the program llama-quantize is a shell around.

    Raises
    ------
    RuntimeError
        It refused, with its own words.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("ggml built for this processor fuses multiplications and additions: other bits")
    # A runtime that was used since has turned the log elsewhere.
    llama_cpp.llama_log_set(_listen, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.nthread = 2
    params.allow_requantize = requantize
    params.pure = pure
    if output_type is not None:
        params.output_tensor_type = _type_id(output_type)
    if embedding_type is not None:
        params.token_embedding_type = _type_id(embedding_type)
    if importance is not None:
        # Held by name until the call is over: ctypes keeps pointers, not what they point to.
        arrays = {name: np.ascontiguousarray(importance[name], np.float32) for name in importance}
        rows = [
            (name.encode(), array.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), array.size)
            for name, array in arrays.items()
        ]
        table = (_Importance * (len(rows) + 1))(*rows)
        field = next(f for f in type(params)._fields_ if f[0] == "imatrix")
        params.imatrix = ctypes.cast(table, field[1])
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params):
        raise RuntimeError(last_words())
    return out


def _type_id(name: str) -> int:
    number: int = getattr(llama_cpp, f"GGML_TYPE_{name.upper()}")
    return number
