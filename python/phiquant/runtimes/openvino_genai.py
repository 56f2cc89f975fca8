"""OpenVINO on processors: the stateful model that openvino_genai runs, and its tokenizer."""

from __future__ import annotations

import re
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant import openvino_folder
from phiquant.errors import FormatError, PhiquantError, UnsupportedError
from phiquant.runtimes.protocol import LoadedModel, Runtime
from phiquant.strict_json import read_json
from phiquant.targets.openvino_tokenizer import VERSION

# Activations and the cache in float32, and no rounding of activations to 8 bits.
_EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
_CACHE_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "i8": 1.0, "u8": 1.0, "i4": 0.5, "u4": 0.5}
# No text matches: what looks like a special token is to be plain text.
_NO_TEXT = rb"([^\s\S])"


class OpenVino(Runtime):
    """Runs folders of OpenVINO IR with its CPU plugin."""

    name = "OpenVINO"
    runs = "OpenVINO folders"
    distribution = "openvino-genai"
    module = "openvino_genai"
    extra = "openvino"
    # Float32 sums in another order: measured below 1e-9 on the test models.
    divergence = 0.0001
    arithmetic = "OpenVINO computes in float32"

    def recognizes(self, path: Path) -> bool:
        """A folder with a model's IR by its usual name."""
        try:
            return openvino_folder.is_folder(path)
        except OSError:
            return False

    def load(self, path: Path, *, context: int, threads: int, exact: bool) -> Model:
        """See :meth:`Runtime.load`; without ``exact``, precisions are the plugin's own choice."""
        self.package()
        check_version(metadata.version("openvino-tokenizers"))
        return Model(import_module("openvino"), path, threads=threads, exact=exact)


def check_version(found: str) -> None:
    """See that openvino-tokenizers has the operations that phiquant's graphs were tested with.

    Raises
    ------
    phiquant.UnsupportedError
        It is older; what it would say of the graph itself helps nobody.
    """
    numbers = [int(part) for part in re.findall(r"\d+", found)[:2]]
    least = [int(part) for part in VERSION.split(".")[:2]]
    if numbers < least:
        wanted = ".".join(map(str, least))
        raise UnsupportedError(
            f"openvino-tokenizers {found} is older than {wanted}, whose operations the tokenizer's "
            "graph is made of",
            remedy="Install it again: pip install 'phiquant[openvino]'",
        )


RUNTIME = OpenVino()


class Model(LoadedModel):
    """A folder in OpenVINO; see :meth:`OpenVino.load`."""

    def __init__(self, api: Any, path: Path, *, threads: int, exact: bool) -> None:
        self._api = api
        self._path = path
        extension = import_module("openvino_tokenizers")._ext_path
        settings = {"INFERENCE_NUM_THREADS": str(threads), **(_EXACT if exact else {})}
        try:
            core = api.Core()
            core.add_extension(str(extension))
            compiled = core.compile_model(str(path / openvino_folder.MODEL), "CPU", settings)
            tokenizer = core.read_model(str(path / "openvino_tokenizer.xml"))
            self._keep_text_plain(tokenizer)
            self._tokenizer = core.compile_model(tokenizer, "CPU")
        except Exception as error:  # RuntimeError of any text, and others
            raise self._refusal("does not load it", error) from None
        self._request: Any = compiled.create_infer_request()
        self.vocabulary = int(compiled.output("logits").get_partial_shape()[2].get_length())
        self.longest = _longest(path)
        self.kv_bytes_per_token = self._kv_bytes(compiled)
        self._past = 0

    def close(self) -> None:
        """Free the model."""
        self._request = self._tokenizer = None

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text as the tokenizer makes them; special tokens in it are plain text."""
        found = self._tokenizer([text])["input_ids"]
        return [int(token) for token in found[0]]

    def logits(self, ids: NDArray[np.integer], last: int) -> NDArray[np.float32]:
        """Logits of the ``last`` last positions of a fresh sequence, shape (last, vocabulary)."""
        self._forget()
        return np.array(self._feed(ids)[-last:], np.float32)

    def start(self, ids: NDArray[np.integer]) -> int:
        """Read a prompt; gives the most likely next token."""
        self._forget()
        return int(self._feed(ids)[-1].argmax())

    def step(self, token: int) -> int:
        """Append a token; gives the most likely next one."""
        return int(self._feed(np.array([token]))[-1].argmax())

    def _forget(self) -> None:
        self._request.reset_state()
        self._past = 0

    def _feed(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Append tokens; the logits of their positions belong to OpenVINO, until the next call."""
        tokens = np.asarray(ids, np.int64)[None]
        end = self._past + tokens.shape[1]
        inputs = {
            "input_ids": tokens,
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self._past, end, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        try:
            found = self._request.infer(inputs, share_inputs=True, share_outputs=True)["logits"]
        except RuntimeError as error:
            raise self._refusal("cannot run it", error) from None
        self._past = end
        rows: NDArray[np.float32] = found[0]
        return rows

    def _keep_text_plain(self, tokenizer: Any) -> None:
        for operation in tokenizer.get_ops():
            if operation.get_type_name() == "SpecialTokensSplit":
                pattern = self._api.op.Constant(np.frombuffer(_NO_TEXT, np.uint8))
                operation.input(5).replace_source_output(pattern.output(0))

    def _kv_bytes(self, compiled: Any) -> int | None:
        precision = compiled.get_property("KV_CACHE_PRECISION").get_type_name()
        if precision not in _CACHE_BYTES:
            return None
        elements = 0
        for state in self._request.query_state():
            _, heads, _, size = state.state.shape
            elements += heads * size
        return int(elements * _CACHE_BYTES[precision])

    def _refusal(self, what: str, error: Exception) -> FormatError:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        return FormatError(f"OpenVINO {what}: {words}", file=self._path)


def _longest(path: Path) -> int | None:
    """The longest sequence that the folder's config names."""
    try:
        found = read_json(path / "config.json").get("max_position_embeddings")
    except PhiquantError:
        return None
    return found if isinstance(found, int) and found > 0 else None
