"""ONNX Runtime GenAI on processors: a loaded folder gives tokens, logits and text."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant import onnx
from phiquant.errors import FormatError, PhiquantError
from phiquant.runtimes.protocol import LoadedModel, Runtime
from phiquant.strict_json import read_json

_CONFIG = "genai_config.json"
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxGenai(Runtime):
    """Runs ONNX folders with a ``genai_config.json``."""

    name = "ONNX Runtime GenAI"
    runs = "ONNX folders"
    distribution = "onnxruntime-genai"
    module = "onnxruntime_genai"
    extra = "onnx"
    # With accuracy_level taken out: measured below 1e-9 on the test models. float16 graphs round
    # their activations, up to 1e-5.
    divergence = 0.001
    arithmetic = "ONNX Runtime computes in the graph's floats"
    # Its SentencePiece tokenizer gives the last of several blanks to the word behind them, in every
    # folder, also of its own builder.
    odd_tokens = 0.1

    def recognizes(self, path: Path) -> bool:
        """A folder with the file that ONNX Runtime GenAI looks for."""
        try:
            return (path / _CONFIG).is_file()
        except OSError:
            return False

    def load(self, path: Path, *, context: int, threads: int, exact: bool) -> Model:
        """See :meth:`Runtime.load`; with ``exact``, MatMulNBits does not round activations."""
        return Model(self.package(), path, context=context, threads=threads, exact=exact)


RUNTIME = OnnxGenai()


class Model(LoadedModel):
    """An ONNX folder; see :meth:`OnnxGenai.load`.

    ONNX Runtime GenAI makes tokens and text. It gives out the last position's logits only, so that
    those of several positions come from ONNX Runtime itself, through the same graph.
    """

    def __init__(self, api: Any, path: Path, *, context: int, threads: int, exact: bool) -> None:
        self._api, self._path = api, path
        self._context, self._threads, self._exact = context, threads, exact
        self._session: Any = None
        self._generator: Any = None
        self._tokens: list[int] = []
        try:
            model: Any = read_json(path / _CONFIG)["model"]
            decoder = model["decoder"]
            self.vocabulary = int(model["vocab_size"])
            self.longest: int | None = int(model["context_length"])
            self._graph = path / decoder["filename"]
            values = 2 * decoder["num_hidden_layers"] * decoder["num_key_value_heads"]
            values *= decoder["head_size"]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"lacks {error}", file=path / _CONFIG) from None
        try:
            config = api.Config(str(path))
            config.clear_providers()
            options = {"intra_op_num_threads": threads}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self._model = api.Model(config)
            self._tokenizer = api.Tokenizer(self._model)
        except PhiquantError:
            raise
        except Exception as error:  # its errors are plain exceptions
            raise self._refusal(error) from error
        self.kv_bytes_per_token = values * np.dtype(self._float()).itemsize

    def close(self) -> None:
        """Free the model."""
        self._generator = self._session = self._model = self._tokenizer = None

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text as ONNX Runtime GenAI makes them."""
        return [int(token) for token in self._tokenizer.encode(text)]

    def logits(self, ids: NDArray[np.integer], last: int) -> NDArray[np.float32]:
        """Logits of the ``last`` last positions of a fresh sequence, shape (last, vocabulary)."""
        session = self._loaded()
        length = len(ids)
        feed: dict[str, Any] = {}
        for value in session.get_inputs():
            if value.name == "input_ids":
                feed[value.name] = np.asarray(ids, np.int64)[None]
            elif value.name == "attention_mask":
                feed[value.name] = np.ones((1, length), np.int64)
            elif value.name == "position_ids":
                feed[value.name] = np.arange(length, dtype=np.int64)[None]
            else:
                _, heads, _, size = value.shape
                # Builders give the size a name, since caches may be quantized.
                width = size if isinstance(size, int) else self._head_size()
                feed[value.name] = np.zeros((1, heads, 0, width), _TYPES[value.type])
        try:
            rows = session.run(["logits"], feed)[0][0, -last:]
        except Exception as error:
            raise self._refusal(error) from error
        found: NDArray[np.float32] = np.ascontiguousarray(rows, np.float32)
        return found

    def start(self, ids: NDArray[np.integer]) -> int:
        """Read a prompt; gives the most likely next token."""
        self._generator = None  # frees its cache before the next one is made
        settings = self._api.GeneratorParams(self._model)
        # The token that answers the last step is generated, too.
        longest = min(self._context + 1, self.longest or self._context)
        settings.set_search_options(max_length=longest, do_sample=False, num_beams=1)
        try:
            self._generator = self._api.Generator(self._model, settings)
            self._tokens = [int(token) for token in ids]
            self._generator.append_tokens(np.asarray(ids, np.int32)[None])
        except Exception as error:
            raise self._refusal(error) from error
        return self._next()

    def step(self, token: int) -> int:
        """Append a token; gives the most likely next one."""
        if self._tokens[-1] != token:
            self._generator.rewind_to(len(self._tokens) - 1)
            self._tokens[-1] = int(token)
            self._generator.append_tokens(np.array([[token]], np.int32))
        return self._next()

    def _next(self) -> int:
        self._generator.generate_next_token()
        self._tokens.append(int(self._generator.get_next_tokens()[0]))
        return self._tokens[-1]

    def _loaded(self) -> Any:
        """The graph in ONNX Runtime itself, on processors."""
        if self._session is None:
            runtime = import_module("onnxruntime")
            options = runtime.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.log_severity_level = 3
            try:
                graph: str | bytes = str(self._graph)
                if self._exact:
                    graph = _exact(self._graph)
                    # It makes MatMulNBits of DequantizeLinear and MatMul, and may round there.
                    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
                    # The bytes do not say where the external data stand.
                    options.add_session_config_entry(
                        "session.model_external_initializers_file_folder_path",
                        str(self._graph.parent),
                    )
                self._session = runtime.InferenceSession(
                    graph, options, providers=["CPUExecutionProvider"]
                )
            except PhiquantError:
                raise
            except Exception as error:
                raise self._refusal(error) from error
        return self._session

    def _head_size(self) -> int:
        config: Any = read_json(self._path / _CONFIG)
        return int(config["model"]["decoder"]["head_size"])

    def _float(self) -> Any:
        """The type of keys and values."""
        graph = onnx.read(self._graph).graph
        return next(info.dtype for info in graph.outputs if info.name != "logits")

    def _refusal(self, error: Exception) -> FormatError:
        words = " ".join(str(error).split())
        return FormatError(f"ONNX Runtime GenAI: {words[:500]}", file=self._path)


def _exact(path: Path) -> bytes:
    """The model with its weights, but activations that nothing rounds.

    Without ``accuracy_level``, which lets MatMulNBits round them to 8 bits; and where they are
    rounded as whole tensors, float products of the decoded weights take the place of the integers'.
    """
    model = onnx.read(path)
    made = {output: node for node in model.graph.nodes for output in node.outputs}
    products = {}  # what the last node behind a product of integers gives, to that product
    rounded = {}  # what an activation is called once it was rounded, to what it was before
    for node in model.graph.nodes:
        source = made.get(node.inputs[0]) if node.inputs else None
        if node.op == "MatMulInteger":
            cast = next(n for n in model.graph.nodes if node.outputs[0] in n.inputs)
            scaled = next(n for n in model.graph.nodes if cast.outputs[0] in n.inputs)
            products[scaled.name] = node
        elif node.op == "DequantizeLinear" and source and source.op == "QuantizeLinear":
            rounded[node.outputs[0]] = source.inputs[0]
    nodes: list[onnx.Node] = []
    for node in model.graph.nodes:
        if node.name in products:
            whole = products[node.name]
            codes = whole.inputs[1]
            both = made[node.inputs[1]]
            weights = f"{whole.name}_decoded"
            nodes.append(
                onnx.Node(
                    *("DequantizeLinear", [codes, both.inputs[1]], [weights], weights),
                    attributes={"axis": 1},
                )
            )
            activations = made[whole.inputs[0]].inputs[0]
            nodes.append(onnx.Node("MatMul", [activations, weights], node.outputs, node.name))
            continue
        nodes.append(
            replace(
                node,
                inputs=[rounded.get(value, value) for value in node.inputs],
                attributes={k: v for k, v in node.attributes.items() if k != "accuracy_level"},
            )
        )
    return replace(model, graph=replace(model.graph, nodes=nodes)).to_bytes()
