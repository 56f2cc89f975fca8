"""mlx-lm on mlx's CPU backend: a loaded folder gives tokens and logits."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant import safetensors
from phiquant.errors import FormatError, PhiquantError
from phiquant.runtimes.protocol import LoadedModel, Runtime


class MlxLm(Runtime):
    """Runs MLX folders, on processors."""

    name = "mlx-lm"
    runs = "MLX folders"
    distribution = "mlx-lm"
    module = "mlx_lm"
    extra = "mlx"
    # Codes are decoded and multiplied in float32: measured below 1e-6 on the test models, where the
    # other set of rope factors makes more than 0.1.
    divergence = 0.0005
    arithmetic = "mlx sums in float32"

    def recognizes(self, path: Path) -> bool:
        """A folder whose safetensors say that they are mlx's."""
        try:
            return path.is_dir() and (safetensors.open_folder(path).metadata.get("format") == "mlx")
        except (PhiquantError, OSError):
            return False

    def load(self, path: Path, *, context: int, threads: int, exact: bool) -> Model:
        """See :meth:`Runtime.load`; with ``exact``, all that is not quantized is float32.

        mlx decides itself how many threads it takes.
        """
        return Model(self.package(), path, exact=exact)


RUNTIME = MlxLm()


class Model(LoadedModel):
    """An MLX folder in mlx-lm; see :meth:`MlxLm.load`."""

    def __init__(self, api: Any, path: Path, *, exact: bool) -> None:
        self._mx = mx = import_module("mlx.core")
        tree_map = import_module("mlx.utils").tree_map
        self._make_cache = import_module("mlx_lm.models.cache").make_prompt_cache
        self._path = path
        mx.set_default_device(mx.cpu)
        # It has advice about keys of Phi's own config, and says so on stderr.
        words_of = logging.getLogger("transformers")
        level = words_of.level
        try:
            words_of.setLevel(logging.ERROR)
            self._model, tokenizer = api.load(str(path))
            if exact:

                def widened(array: Any) -> Any:
                    floats = mx.issubdtype(array.dtype, mx.floating)
                    return array.astype(mx.float32) if floats else array

                self._model.update(tree_map(widened, self._model.parameters()))
            mx.eval(self._model.parameters())
        except Exception as error:  # whatever mlx, mlx-lm and transformers raise
            words = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            raise FormatError(f"mlx-lm does not load it: {words}", file=path) from None
        finally:
            words_of.setLevel(level)
        self._tokenizer = getattr(tokenizer, "_tokenizer", tokenizer)
        settings = self._model.args
        self.vocabulary = int(settings.vocab_size)
        self.longest = int(settings.max_position_embeddings)
        head = settings.hidden_size // settings.num_attention_heads
        size = 4 if exact else 2
        self.kv_bytes_per_token = int(
            2 * size * settings.num_hidden_layers * settings.num_key_value_heads * head
        )
        self._cache: Any = None

    def close(self) -> None:
        """Free the model."""
        self._model = self._cache = None
        self._mx.clear_cache()

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text as mlx-lm's tokenizer makes them."""
        found = self._tokenizer(text, split_special_tokens=True)["input_ids"]
        return [int(token) for token in found]

    def logits(self, ids: NDArray[np.integer], last: int) -> NDArray[np.float32]:
        """Logits of the ``last`` last positions of a fresh sequence, shape (last, vocabulary)."""
        found = self._run(ids, None)[-last:].astype(self._mx.float32)
        return np.array(found, np.float32)

    def start(self, ids: NDArray[np.integer]) -> int:
        """Read a prompt; gives the most likely next token."""
        self._cache = self._make_cache(self._model)
        return int(self._run(ids, self._cache)[-1].argmax().item())

    def step(self, token: int) -> int:
        """Append a token; gives the most likely next one."""
        return int(self._run(np.array([token]), self._cache)[-1].argmax().item())

    def _run(self, ids: NDArray[np.integer], cache: Any) -> Any:
        """Logits of all positions, as mlx's array of shape (positions, vocabulary)."""
        tokens = self._mx.array(np.asarray(ids, np.int32)[None])
        try:
            found = self._model(tokens, cache=cache)[0]
            self._mx.eval(found)
        except (RuntimeError, ValueError) as error:
            raise FormatError(f"mlx-lm cannot run it: {error}", file=self._path) from None
        return found
