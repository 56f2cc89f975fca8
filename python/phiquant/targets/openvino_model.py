"""The decoder's graph in OpenVINO's operations, with the patterns that its plugins know.

Attention over a cache held in state, rope, RMSNorm and weights that are decompressed where they
are used are each written in the one form that OpenVINO's CPU plugin replaces by a kernel of its
own, and that openvino_genai turns into paged attention: the form of optimum-intel's exports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from phiquant.architectures import ModelSpec
from phiquant.architectures.spec import LongRope, TensorRole
from phiquant.openvino_folder import INPUT_SCALE
from phiquant.targets.openvino_graph import Graph, Value
from phiquant.targets.openvino_weights import Encoding, stored_matrix, stored_vector

# What attention adds where a token must not look: the least half.
_MASKED = -65504.0
_TO_THE_END = (1 << 63) - 1


def decoder(
    spec: ModelSpec,
    encoding: Callable[[TensorRole], Encoding],
    input_scales: Mapping[str, NDArray[np.float32]] | None = None,
) -> Graph:
    """The whole model: token ids to logits, with the keys and values of past tokens as state.

    Inputs are ``input_ids``, ``attention_mask`` and ``position_ids`` (i64, [batch, tokens]) and
    ``beam_idx`` (i32, [batch]), which says what sequence each continues; the output is ``logits``
    (f32, [batch, tokens, vocabulary]).

    Parameters
    ----------
    spec : ModelSpec
    encoding : callable
        How each tensor is stored.
    input_scales : mapping of str to float32 array, optional
        By source name of a down projection: what its inputs are multiplied by, one factor each,
        because its columns are stored divided by that. In the form of NNCF's AWQ, behind Swish.
    """
    return _Builder(spec, encoding, input_scales or {}).build()


class _Builder:
    def __init__(
        self,
        spec: ModelSpec,
        encoding: Callable[[TensorRole], Encoding],
        input_scales: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self.spec = spec
        self.encoding = encoding
        self.input_scales = input_scales
        self.graph = Graph("phiquant")
        self.tensors = {(tensor.role, tensor.layer): tensor for tensor in spec.tensors}
        self._weights: dict[str, Value] = {}
        self._assigned: list[tuple[Value, str]] = []

    def build(self) -> Graph:
        graph, spec = self.graph, self.spec
        ids = graph.parameter("input_ids", "i64", (None, None))
        self.attention_mask = graph.parameter("attention_mask", "i64", (None, None))
        self.positions = graph.parameter("position_ids", "i64", (None, None))
        self.beams = graph.parameter("beam_idx", "i32", (None,))
        self.ids = ids
        shape = graph.add("ShapeOf", ids, types=["i64"], version="opset3", output_type="i64")
        self.batch = self._gather(shape, self._ints([0]))
        self.length = self._gather(shape, self._int(1))
        table = self._weight("embedding", None)
        rows = graph.convert(ids, "i32")
        hidden = self._gather(table, rows, graph.number(0, "i4"), name="embedding")
        self.cosines, self.sines = self._rotation()
        self.mask: Value | None = None
        for layer in range(spec.layers):
            hidden = self._attention(hidden, layer)
            hidden = self._mlp(hidden, layer)
        hidden = self._normalize(hidden, self._vector("norm", None), "norm")
        head = table if spec.tied else self._weight("output", None)
        logits = self._matmul(hidden, head, "output", tensor_names="logits")
        for value, variable in self._assigned:
            graph.add(
                "Assign", value, version="opset6", name=f"Assign_{variable}", variable_id=variable
            )
        graph.result(logits, "logits")
        return graph

    # Attention

    def _attention(self, hidden: Value, layer: int) -> Value:
        graph, shape = self.graph, self.spec.attention
        label = f"layers.{layer}.attn"
        normed = self._normalize(hidden, self._vector("attn_norm", layer), f"{label}_norm")
        qkv = self._matmul(normed, self._weight("attn_qkv", layer), f"{label}_qkv")
        size = shape.head_size
        ends = [0, shape.heads * size, (shape.heads + shape.kv_heads) * size, _TO_THE_END]
        parts = []
        for heads, begin, end in zip(
            (shape.heads, shape.kv_heads, shape.kv_heads), ends[:-1], ends[1:], strict=True
        ):
            part = self._slice(qkv, begin, end, 2)
            part = self._reshape(part, (0, 0, heads, size))
            parts.append(self._transpose(part, (0, 2, 1, 3)))
        query, key, value = parts
        query, key = self._rotate(query), self._rotate(key)
        past_key, key = self._cached(key, f"past_key_values.{layer}.key", f"present.{layer}.key")
        _, value = self._cached(value, f"past_key_values.{layer}.value", f"present.{layer}.value")
        if self.mask is None:
            self.mask = self._mask(past_key)
        mixed = graph.add(
            "ScaledDotProductAttention",
            query,
            self._repeat(key),
            self._repeat(value),
            self.mask,
            graph.number(np.float32(1) / np.sqrt(np.float32(size)), "f4"),
            version="opset13",
            name=label,
            causal=False,
        )
        mixed = self._transpose(mixed, (0, 2, 1, 3))
        mixed = self._reshape(mixed, (0, 0, shape.heads * size))
        out = self._matmul(mixed, self._weight("attn_output", layer), f"{label}_output")
        return self._arithmetic("Add", hidden, out)

    def _cached(self, new: Value, past: str, present: str) -> tuple[Value, Value]:
        """The state of the chosen beams, and that with the new tokens' behind it, which is kept."""
        graph, shape = self.graph, self.spec.attention
        variable = past + present
        extents = [self.batch, self._ints([shape.kv_heads, 0, shape.head_size])]
        empty = graph.add(
            "Broadcast",
            graph.number(0, "f4"),
            graph.add("Concat", *extents, axis=0),
            version="opset3",
            mode="numpy",
        )
        state = graph.add(
            "ReadValue",
            empty,
            version="opset6",
            name=f"ReadValue_{variable}",
            tensor_names=past,
            variable_id=variable,
            variable_type="f32",
            variable_shape=f"?,{shape.kv_heads},?,{shape.head_size}",
        )
        chosen = self._gather(state, self.beams)
        full = graph.add("Concat", chosen, new, axis=-2)
        self._assigned.append((full, variable))
        return chosen, full

    def _repeat(self, value: Value) -> Value:
        """Each head of keys or values for every query head of its group."""
        shape = self.spec.attention
        if shape.group == 1:
            return value
        graph = self.graph
        extents = graph.add("ShapeOf", value, types=["i64"], version="opset3", output_type="i64")
        wide = graph.add(
            "Concat",
            self._gather(extents, self._ints([0, 1])),
            self._ints([shape.group]),
            self._gather(extents, self._ints([2, 3])),
            axis=0,
        )
        value = graph.add("Unsqueeze", value, self._int(2))
        value = graph.add("Broadcast", value, wide, version="opset3", mode="bidirectional")
        return self._reshape(value, (0, shape.heads, -1, shape.head_size))

    def _mask(self, past_key: Value) -> Value:
        """What attention adds: shape [batch, 1, new tokens, all tokens].

        openvino_genai looks for this very chain to tell a sliding window, whose length it takes
        from the constant that is added to the queries' positions.
        """
        graph = self.graph
        shape = graph.add("ShapeOf", past_key, types=["i64"], version="opset3", output_type="i64")
        past = self._gather(shape, self._int(2))
        end = self._arithmetic("Add", past, self.length)
        one = self._int(1)
        keys = graph.add("Range", self._int(0), end, one, version="opset4", output_type="i64")
        keys = self._unsqueeze(keys, (0, 1, 2))
        queries = graph.add("Range", past, end, one, version="opset4", output_type="i64")
        queries = self._unsqueeze(queries, (0, 1, 3))
        allowed = self._compare("LessEqual", keys, queries)
        true = graph.number(True, "?")
        if self.spec.attention.window is not None:
            begin = graph.number([[[[-self.spec.attention.window]]]])
            inside = self._compare("Greater", keys, self._arithmetic("Add", queries, begin))
            allowed = self._and(self._and(true, inside), allowed)
        real = self._unsqueeze(graph.convert(self.attention_mask, "boolean"), (1, 2))
        allowed = self._and(self._and(true, allowed), real)
        extents = [self.batch, self._ints([1])]
        extents += [graph.add("Unsqueeze", extent, self._int(0)) for extent in (self.length, end)]
        allowed = graph.add(
            "Broadcast",
            allowed,
            graph.add("Concat", *extents, axis=0),
            version="opset3",
            mode="bidirectional",
        )
        mask = graph.add(
            "Select",
            allowed,
            graph.number(0, "f4"),
            graph.number(_MASKED, "f4"),
            types=["f32"],
            auto_broadcast="numpy",
        )
        return graph.add(
            "Slice", mask, *[self._ints([0]), extents[-1], self._ints([1]), self._ints([3])],
            version="opset8",
        )  # fmt: skip

    # Rope

    def _rotation(self) -> tuple[Value, Value]:
        """Cosines and sines of every position, shape [batch, 1, tokens, rotary dimensions].

        With longrope the factors are chosen when the graph runs, by the last position, as
        optimum-intel's exports choose; plugins look for this chain too.
        """
        graph, rope = self.graph, self.spec.rope
        # In float32, as transformers computes them.
        exponents = np.arange(0, rope.dimensions, 2, dtype=np.float32)
        exponents /= np.float32(rope.dimensions)
        waves = np.power(np.float32(rope.base), exponents, dtype=np.float32)
        if rope.scaling is None:
            frequencies = graph.number((np.float32(1) / waves)[None, :, None], "f4")
        else:
            chosen = self._arithmetic(
                "Multiply", self._factors(rope.scaling), graph.number(waves, "f4")
            )
            inverse = self._arithmetic("Power", chosen, graph.number([-1.0], "f4"))
            frequencies = graph.add("Unsqueeze", inverse, self._int(0))
            frequencies = graph.add("Unsqueeze", frequencies, self._int(2))
        positions = graph.add("Unsqueeze", self.positions, self._int(1))
        positions = graph.convert(positions, "f32")
        angles = graph.add("MatMul", frequencies, positions, transpose_a=False, transpose_b=False)
        angles = self._transpose(angles, (0, 2, 1))
        both = graph.add("Concat", angles, angles, axis=-1)
        found = []
        for kind in ("Cos", "Sin"):
            value = graph.add(kind, both)
            if rope.scaling is not None:
                scale = graph.number([[[rope.scaling.attention_factor]]], "f4")
                value = self._arithmetic("Multiply", value, scale)
            found.append(graph.add("Unsqueeze", value, self._int(1)))
        return found[0], found[1]

    def _factors(self, scaling: LongRope) -> Value:
        graph = self.graph
        axes = graph.number([0, 1], "i4")
        last = graph.add("ReduceMax", self.positions, axes, keep_dims=False)
        length = self._arithmetic("Add", last, self._int(1))
        longer = self._compare("Greater", length, self._int(self.spec.rope.original_context))
        return graph.add(
            "Select",
            longer,
            graph.number(scaling.long_factors, "f4"),
            graph.number(scaling.short_factors, "f4"),
            types=["f32"],
            auto_broadcast="numpy",
        )

    def _rotate(self, heads: Value) -> Value:
        """Rotate the first dimensions of each head, pairing halves."""
        graph, rotary = self.graph, self.spec.rope.dimensions
        rest = None
        if rotary < self.spec.attention.head_size:
            rest = self._slice(heads, rotary, _TO_THE_END, 3)
            heads = self._slice(heads, 0, rotary, 3)
        first = self._slice(heads, 0, rotary // 2, 3)
        second = self._slice(heads, rotary // 2, _TO_THE_END, 3)
        negated = self._arithmetic("Multiply", second, graph.number(-1.0, "f4"))
        turned = graph.add("Concat", negated, first, axis=-1)
        rotated = self._arithmetic(
            "Add",
            self._arithmetic("Multiply", heads, self.cosines),
            self._arithmetic("Multiply", turned, self.sines),
        )
        return rotated if rest is None else graph.add("Concat", rotated, rest, axis=-1)

    # The rest of a layer

    def _mlp(self, hidden: Value, layer: int) -> Value:
        graph, label = self.graph, f"layers.{layer}.ffn"
        normed = self._normalize(hidden, self._vector("ffn_norm", layer), f"{label}_norm")
        both = self._matmul(normed, self._weight("ffn_gate_up", layer), f"{label}_gate_up")
        size = self.spec.mlp.size
        gate, up = graph.add_many(
            "VariadicSplit", both, self._int(-1), self._ints([size, size]), types=["f32", "f32"]
        )
        gated = graph.add("Swish", gate, version="opset4")
        source = self._tensor("ffn_down", layer).source
        if source in self.input_scales:
            factors = self.input_scales[source][None, None]
            gated = self._arithmetic(
                "Multiply", gated, graph.numbers(factors, source + INPUT_SCALE)
            )
        inner = self._arithmetic("Multiply", up, gated)
        down = self._matmul(inner, self._weight("ffn_down", layer), f"{label}_down")
        return self._arithmetic("Add", hidden, down)

    def _normalize(self, hidden: Value, weight: Value, label: str) -> Value:
        graph = self.graph

        def number(value: float) -> Value:
            return graph.number([[[value]]], "f4")

        squares = self._arithmetic("Power", hidden, number(2.0))
        mean = graph.add("ReduceMean", squares, self._ints([-1]), keep_dims=True)
        root = graph.add("Sqrt", self._arithmetic("Add", mean, number(self.spec.norm.epsilon)))
        inverse = graph.add("Divide", number(1.0), root, auto_broadcast="numpy", m_pythondiv=True)
        scaled = self._arithmetic("Multiply", hidden, inverse)
        return self._arithmetic("Multiply", weight, scaled, name=label)

    # Weights

    def _vector(self, role: str, layer: int | None) -> Value:
        """A norm's weights, shape [1, 1, hidden size]."""
        tensor = self._tensor(role, layer)
        return stored_vector(self.graph, tensor, self.encoding(tensor))

    def _weight(self, role: str, layer: int | None) -> Value:
        """A matrix as f32, shape [rows, columns], decompressed from what is stored."""
        tensor = self._tensor(role, layer)
        return stored_matrix(self.graph, tensor, self.encoding(tensor))

    def _tensor(self, role: str, layer: int | None) -> TensorRole:
        return self.tensors[role, layer]  # type: ignore[index]

    # Operations with their usual attributes

    def _matmul(self, x: Value, weight: Value, name: str, *, tensor_names: str = "") -> Value:
        return self.graph.add(
            "MatMul", x, weight, name=name, tensor_names=tensor_names, transpose_a=False,
            transpose_b=True,
        )  # fmt: skip

    def _arithmetic(self, kind: str, a: Value, b: Value, *, name: str = "") -> Value:
        return self.graph.add(kind, a, b, name=name, auto_broadcast="numpy")

    def _compare(self, kind: str, a: Value, b: Value) -> Value:
        return self.graph.add(kind, a, b, types=["boolean"], auto_broadcast="numpy")

    def _and(self, a: Value, b: Value) -> Value:
        return self.graph.add("BitwiseAnd", a, b, version="opset13", auto_broadcast="numpy")

    def _gather(
        self, data: Value, indices: Value, axis: Value | None = None, *, name: str = ""
    ) -> Value:
        axis = self._int(0) if axis is None else axis
        return self.graph.add(
            "Gather", data, indices, axis, version="opset8", name=name, batch_dims=0
        )

    def _slice(self, value: Value, begin: int, end: int, axis: int) -> Value:
        bounds = [self._ints([number]) for number in (begin, end, 1, axis)]
        return self.graph.add("Slice", value, *bounds, version="opset8")

    def _reshape(self, value: Value, shape: tuple[int, ...]) -> Value:
        return self.graph.add("Reshape", value, self._ints(shape), special_zero=True)

    def _transpose(self, value: Value, order: tuple[int, ...]) -> Value:
        return self.graph.add("Transpose", value, self.graph.number(order, "i4"))

    def _unsqueeze(self, value: Value, axes: tuple[int, ...]) -> Value:
        return self.graph.add("Unsqueeze", value, self._ints(axes))

    def _int(self, value: int) -> Value:
        return self.graph.number(value)

    def _ints(self, values: tuple[int, ...] | list[int]) -> Value:
        return self.graph.number(values)
