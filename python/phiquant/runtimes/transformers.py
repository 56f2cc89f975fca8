"""transformers on processors: a loaded Hugging Face folder gives tokens and logits."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant import safetensors
from phiquant.architectures import read_config
from phiquant.errors import FormatError, PhiquantError
from phiquant.runtimes.protocol import LoadedModel, Runtime


class Transformers(Runtime):
    """Runs Hugging Face folders, those in compressed-tensors included, on processors."""

    name = "transformers"
    runs = "Hugging Face folders"
    distribution = "transformers"
    module = "transformers"
    extra = "hf"
    # compressed-tensors rounds decoded weights to the type of the scales: 1e-5 and less, measured.
    divergence = 0.0005
    arithmetic = "compressed-tensors rounds decoded weights to bfloat16"

    def recognizes(self, path: Path) -> bool:
        """A folder with a config and safetensors that are not mlx's."""
        try:
            return (
                path.is_dir()
                and (path / "config.json").is_file()
                and safetensors.open_folder(path).metadata.get("format") != "mlx"
            )
        except (PhiquantError, OSError):
            return False

    def load(self, path: Path, *, context: int, threads: int, exact: bool) -> Model:
        """See :meth:`Runtime.load`; with ``exact``, in float32 with activations as they are.

        The number of threads is torch's own, and so is the whole process's.
        """
        return Model(self.package(), path, threads=threads, exact=exact)


RUNTIME = Transformers()


class Model(LoadedModel):
    """A Hugging Face folder in transformers; see :meth:`Transformers.load`."""

    def __init__(self, api: Any, path: Path, *, threads: int, exact: bool) -> None:
        self._torch = torch = import_module("torch")
        self._path = path
        torch.set_num_threads(threads)
        # It has advice, and bars of progress, and says so on stderr.
        words_of = logging.getLogger("transformers")
        level = words_of.level
        settings = api.utils.logging
        bars = settings.is_progress_bar_enabled()
        try:
            words_of.setLevel(logging.ERROR)
            settings.disable_progress_bar()
            self._model = api.AutoModelForCausalLM.from_pretrained(
                path,
                local_files_only=True,
                dtype=torch.float32 if exact else "auto",
                **_dequantized(api, path, exact=exact),
            ).eval()
            self._tokenizer = api.AutoTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as error:  # whatever torch, transformers and compressed-tensors raise
            words = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            raise FormatError(f"transformers does not load it: {words}", file=path) from None
        finally:
            words_of.setLevel(level)
            if bars:
                settings.enable_progress_bar()
        config = self._model.config
        self.vocabulary = int(config.vocab_size)
        self.longest = int(config.max_position_embeddings)
        head = config.hidden_size // config.num_attention_heads
        size = self._model.dtype.itemsize
        self.kv_bytes_per_token = int(
            2 * size * config.num_hidden_layers * config.num_key_value_heads * head
        )
        self._cache: Any = None

    def close(self) -> None:
        """Free the model."""
        self._model = self._cache = None

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text as transformers makes them."""
        found = self._tokenizer(text, split_special_tokens=True)["input_ids"]
        return [int(token) for token in found]

    def logits(self, ids: NDArray[np.integer], last: int) -> NDArray[np.float32]:
        """Logits of the ``last`` last positions of a fresh sequence, shape (last, vocabulary)."""
        found: NDArray[np.float32] = self._run(ids, use_cache=False, logits_to_keep=last).numpy()
        return found

    def start(self, ids: NDArray[np.integer]) -> int:
        """Read a prompt; gives the most likely next token."""
        self._cache = None
        return int(self._run(ids, use_cache=True, logits_to_keep=1)[-1].argmax())

    def step(self, token: int) -> int:
        """Append a token; gives the most likely next one."""
        ids = np.array([token])
        return int(self._run(ids, use_cache=True, logits_to_keep=1)[-1].argmax())

    def _run(self, ids: NDArray[np.integer], **settings: Any) -> Any:
        """Logits as torch's tensor of shape (positions, vocabulary)."""
        torch = self._torch
        tokens = torch.from_numpy(np.asarray(ids, np.int64)[None])
        try:
            with torch.no_grad():
                found = self._model(tokens, past_key_values=self._cache, **settings)
        except (RuntimeError, ValueError, IndexError) as error:
            words = " ".join(str(error).split())[:400]
            raise FormatError(f"transformers cannot run it: {words}", file=self._path) from None
        if settings["use_cache"]:
            self._cache = found.past_key_values
        return found.logits[0].float()


def _dequantized(api: Any, path: Path, *, exact: bool) -> dict[str, Any]:
    """Ask for weights decoded while they are loaded, where transformers can do that.

    Otherwise compressed-tensors decodes them before the first forward pass; which in 0.18 to 0.20
    fails for zero points. What is decoded at loading runs without rounding activations.
    """
    found = read_config(path / "config.json").get("quantization_config")
    groups = found.get("config_groups") if isinstance(found, dict) else None
    # It would decode all by the first group's scheme.
    if not isinstance(groups, dict) or len(groups) != 1:
        return {}
    rounds = any(
        isinstance(group, dict) and group.get("input_activations") for group in groups.values()
    )
    if rounds and not exact:
        return {}
    return {"quantization_config": api.CompressedTensorsConfig(dequantize=True)}
