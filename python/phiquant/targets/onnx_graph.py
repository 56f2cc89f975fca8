"""The ONNX graph of a decoder, as ONNX Runtime GenAI runs it, with the recipe of each constant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from phiquant.architectures import ModelSpec, TensorRole
from phiquant.onnx import Graph, Node, Tensor, TensorInfo
from phiquant.targets.onnx_matrices import CAST_TO, DTYPES, MICROSOFT, Matrices, Stored
from phiquant.targets.onnx_options import Grid, Settings


@dataclass(frozen=True)
class ModelGraph:
    """A graph whose large constants are still to be made.

    Attributes
    ----------
    graph : Graph
        Without those constants.
    stored : tuple of Stored
        In the order of their use; those of ``If``'s branches name the branch.
    branches : mapping of str to str
        A stored constant's name to the name of the inner graph that holds it.
    """

    graph: Graph
    stored: tuple[Stored, ...]
    branches: Mapping[str, str]

    def placed(self, tensors: Mapping[str, Tensor]) -> Graph:
        """The whole graph, with the stored constants as ``tensors`` by name."""
        by_graph: dict[str, list[Tensor]] = {}
        for item in self.stored:
            where = self.branches.get(item.name, "")
            by_graph.setdefault(where, []).append(tensors[item.name])

        def fill(node: Node) -> Node:
            inner = {
                key: replace(value, initializers=by_graph.get(value.name, []))
                for key, value in node.attributes.items()
                if isinstance(value, Graph)
            }
            return replace(node, attributes={**node.attributes, **inner}) if inner else node

        return replace(
            self.graph,
            nodes=[fill(node) for node in self.graph.nodes],
            initializers=[*self.graph.initializers, *by_graph.get("", [])],
        )


def model_graph(
    spec: ModelSpec,
    settings: Settings,
    grids: Mapping[str, Grid | None],
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> ModelGraph:
    """Build the graph.

    Node and value names are those of onnxruntime-genai's own model builder, so that tools which
    look for them find them.

    Parameters
    ----------
    grids : mapping
        Of every matrix by source name, see :func:`phiquant.targets.onnx_options.grids_of`.
    ranges : mapping, optional
        Of ``int8-static``: the least and the largest value that each matrix is applied to.
    """
    return _Builder(spec, settings, grids, ranges or {}).build()


class _Builder(Matrices):
    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        grids: Mapping[str, Grid | None],
        ranges: Mapping[str, tuple[float, float]],
    ) -> None:
        super().__init__(settings, grids, ranges)
        self.spec = spec
        self.branches: dict[str, str] = {}
        self.by_role = {(tensor.role, tensor.layer): tensor for tensor in spec.tensors}
        # DirectML has no rotation inside its attention, and the others' takes tables whose width is
        # a multiple of 8: then queries and keys are rotated before it, by operators of their own.
        self.separate = settings.provider == "dml" or spec.rope.dimensions % 16 != 0

    def build(self) -> ModelGraph:
        spec = self.spec
        if self.separate:
            self._positions()
        self._lengths()
        self._rope()
        residual = self._embedding()
        added = ""
        for layer in range(spec.layers):
            residual, added = self._layer(layer, residual, added)
        name = f"/model/layers.{spec.layers}/final_norm_layernorm"
        weight = f"model.layers.{spec.layers}.final_norm_layernorm.weight"
        normed, _ = self._norm(name, weight, self.by_role["norm", None], residual, added, last=True)
        self._head(normed)
        graph = Graph(
            "main_graph",
            self.nodes,
            self._inputs(),
            self._outputs(),
            list(self.constants.values()),
            self.values,
        )
        return ModelGraph(graph, tuple(self.stored), self.branches)

    def _vector(self, name: str, tensor: TensorRole) -> str:
        codec = self.settings.activations
        self.stored.append(
            Stored(*(name, self.float, tensor.shape, tensor.source, codec), weights=tensor.elements)
        )
        return name

    def _norm(
        self,
        name: str,
        weight: str,
        tensor: TensorRole,
        residual: str,
        added: str,
        *,
        last: bool = False,
    ) -> tuple[str, str]:
        """The normed sum of the residual stream and what was added, and that sum."""
        scale = self._vector(weight, tensor)
        epsilon = float(np.float32(self.spec.norm.epsilon))
        if not added:
            # Of ONNX Runtime, but in ONNX's own domain.
            normed = self._node(
                "SimplifiedLayerNormalization",
                f"{name}/LayerNorm",
                [residual, scale],
                [f"{name}/output_0"],
                axis=-1,
                epsilon=epsilon,
                stash_type=1,
            )
            return self._known(normed, self.spec.hidden_size), residual
        total = f"{name}/output_3"
        outputs = [f"{name}/output_0"] if last else [f"{name}/output_0", "", "", total]
        normed = self._node(
            "SkipSimplifiedLayerNormalization",
            f"{name}/SkipLayerNorm",
            [residual, added, scale],
            outputs,
            MICROSOFT,
            epsilon=epsilon,
        )
        if not last:
            self._known(total, self.spec.hidden_size)
        return self._known(normed, self.spec.hidden_size), total

    # --- the graph, from top to bottom ---

    def _lengths(self) -> None:
        """The sequences' lengths as attention wants them, from the attention mask."""
        name = "/model/attn_mask_reformat/attn_mask_subgraph"
        one = self._integers([1])
        total = self._node("ReduceSum", f"{name}/ReduceSum", ["attention_mask", one], keepdims=0)
        last = self._node("Sub", f"{name}/Sub", [total, one])
        self.last = self._node("Cast", f"{name}/Sub/Cast", [last], to=CAST_TO["int32"])
        shape = self._node("Shape", f"{name}/Shape", ["attention_mask"])
        self.length = self._node("Gather", f"{name}/Gather", [shape, self._integers(1)], axis=0)
        self.total = self._node("Cast", f"{name}/Gather/Cast", [self.length], to=CAST_TO["int32"])

    def _tables(self, kind: str, sequences: Sequence[int]) -> tuple[tuple[int, int], bytes]:
        """Cosines or sines of sequences of these lengths, one after the other."""
        # Whoever only imports phiquant needs no forward pass.
        from phiquant.reference.attention import rotation

        rope = self.spec.rope
        made = np.empty((sum(sequences), rope.dimensions // 2), DTYPES[self.settings.activations])
        at = 0
        for length in sequences:
            # In pieces, or the angles of all positions would take as much memory again and again.
            for begin in range(0, length, 4096):
                end = min(length, begin + 4096)
                pair = rotation(rope, length, begin, end)
                made[at : at + end - begin] = pair[0] if kind == "cos" else pair[1]
                at += end - begin
        return made.shape, made.tobytes()

    def _table(self, name: str, kind: str, sequences: Sequence[int]) -> Stored:
        shape, literal = self._tables(kind, sequences)
        return Stored(name, self.float, shape, None, self.settings.activations, literal=literal)

    def _rope(self) -> None:
        """The tables of cosines and sines, in two versions where longrope has two."""
        rope, context = self.spec.rope, self.spec.context
        kinds = ("cos", "sin")
        short, long = [rope.original_context], [context]
        if rope.scaling is None or context <= rope.original_context:
            self.stored += [self._table(f"{kind}_cache", kind, long) for kind in kinds]
            return
        if self.separate:
            # One table, the long positions after the short ones.
            both = short + long
            self.stored += [self._table(f"{kind}_cache", kind, both) for kind in kinds]
            return
        name = "/model/rope_caches_subgraph"
        limit = self._integers(rope.original_context)
        is_long = self._node("Greater", f"{name}/Greater", [self.length, limit])
        branches: dict[str, Any] = {}
        for branch, size, tables in (("then", "large", long), ("else", "small", short)):
            items = [self._table(f"{kind}_cache_{size}_values", kind, tables) for kind in kinds]
            self.stored += items
            self.branches |= {item.name: f"{size}_rope_caches_graph" for item in items}
            outputs = [f"{kind}_cache_{size}" for kind in kinds]
            # A branch's output must be made by a node of it.
            nodes = [
                Node("Identity", [item.name], [output], f"/{size}/{output}/Identity")
                for item, output in zip(items, outputs, strict=True)
            ]
            infos = [
                TensorInfo(output, self.float, item.shape)
                for item, output in zip(items, outputs, strict=True)
            ]
            branches[f"{branch}_branch"] = Graph(f"{size}_rope_caches_graph", nodes, (), infos)
        self._node("If", f"{name}/If", [is_long], ["cos_cache", "sin_cache"], **branches)

    def _positions(self) -> None:
        """Positions in the joined tables: beyond the original context in their second part."""
        rope = self.spec.rope
        self.position = "position_ids"
        if rope.scaling is None or self.spec.context <= rope.original_context:
            return
        name = "/model/pos_ids_reformat"
        original = self._integers(rope.original_context)
        largest = self._node("ReduceMax", f"{name}/ReduceMax", ["position_ids"], keepdims=0)
        is_long = self._node("GreaterOrEqual", f"{name}/GreaterOrEqual", [largest, original])
        as_number = self._node("Cast", f"{name}/Cast", [is_long], to=CAST_TO["int64"])
        shift = self._node("Mul", f"{name}/Mul", [as_number, original])
        self.position = self._node("Add", f"{name}/Add_1", [shift, "position_ids"])

    def _embedding(self) -> str:
        tensor = self.by_role["embedding", None]
        grid = self.grids[tensor.source]
        name = "/model/embed_tokens"
        apart = self.settings.qdq or self.settings.classic
        if grid is not None and not apart:
            self.head_inputs = self._packed("lm_head.MatMul.weight", tensor, grid, None)
            codes, *rest = self.head_inputs
            row = tensor.shape[1] * grid.bits // 8
            shape = self._integers([tensor.shape[0], row])
            flat = self._node("Reshape", f"{name}/Reshape", [codes, shape])
            found = self._node(
                "GatherBlockQuantized",
                f"{name}/GatherBlockQuantized",
                [flat, "input_ids", *rest],
                domain=MICROSOFT,
                bits=grid.bits,
                block_size=grid.block,
                gather_axis=0,
                quantize_axis=1,
            )
            return self._known(found, self.spec.hidden_size)
        if grid is not None and self.settings.classic:
            codes, scales = self._eight_bits("lm_head.MatMul.weight", tensor, None)
            found = self.classic.lookup(name, "input_ids", codes, scales)
            return self._known(found, self.spec.hidden_size)
        weight = "model.embed_tokens.weight"
        codec = self.settings.activations
        self.stored.append(
            Stored(
                *(weight, self.float, tensor.shape, tensor.source, codec), weights=tensor.elements
            )
        )
        return self._node("Gather", f"{name}/Gather", [weight, "input_ids"])

    def _head(self, x: str) -> None:
        tensor = self.by_role["embedding" if self.spec.tied else "output", None]
        name, logits = "/lm_head/MatMul", ["logits"]
        grid = self.grids[tensor.source]
        apart = self.settings.qdq or self.settings.classic
        if not self.spec.tied or (grid is not None and apart):
            self._matmul(name, "lm_head.MatMul.weight", x, tensor, outputs=logits)
        elif grid is None:
            # The embedding's table serves both, without a second copy in the file.
            turned = self._node(
                "Transpose", "/lm_head/Transpose", ["model.embed_tokens.weight"], perm=[1, 0]
            )
            self._node("MatMul", name, [x, turned], logits)
        else:
            level = {"accuracy_level": self.settings.accuracy} if self.settings.accuracy else {}
            self._node(
                "MatMulNBits",
                f"{name}_Q{grid.bits}",
                [x, *self.head_inputs],
                logits,
                MICROSOFT,
                K=tensor.shape[1],
                N=tensor.shape[0],
                **level,
                bits=grid.bits,
                block_size=grid.block,
            )

    def _layer(self, index: int, residual: str, added: str) -> tuple[str, str]:
        """One layer: the residual stream after its attention, and what its MLP adds to it."""
        spec = self.spec
        name, weights = f"/model/layers.{index}", f"model.layers.{index}"
        normed, residual = self._norm(
            f"{name}/input_layernorm",
            f"{weights}.input_layernorm.weight",
            self.by_role["attn_norm", index],
            residual,
            added,
        )
        mixed = self._attention(index, normed)
        projected = self._matmul(
            f"{name}/attn/o_proj/MatMul",
            f"{weights}.attn.o_proj.MatMul.weight",
            mixed,
            self.by_role["attn_output", index],
        )
        normed, residual = self._norm(
            f"{name}/post_attention_layernorm",
            f"{weights}.post_attention_layernorm.weight",
            self.by_role["ffn_norm", index],
            residual,
            projected,
        )
        fused, size = self.by_role["ffn_gate_up", index], spec.mlp.size
        gate, up = (
            self._matmul(
                f"{name}/mlp/{part}_proj/MatMul",
                f"{weights}.mlp.{part}_proj.MatMul.weight",
                normed,
                fused,
                rows,
            )
            for part, rows in (("gate", (0, size)), ("up", (size, 2 * size)))
        )
        sigmoid = self._node("Sigmoid", f"{name}/mlp/act_fn/Sigmoid", [gate])
        active = self._node("Mul", f"{name}/mlp/act_fn/Mul", [gate, sigmoid])
        inner = self._node("Mul", f"{name}/mlp/Mul", [active, up])
        down = self._matmul(
            f"{name}/mlp/down_proj/MatMul",
            f"{weights}.mlp.down_proj.MatMul.weight",
            inner,
            self.by_role["ffn_down", index],
        )
        return residual, down

    def _attention(self, index: int, x: str) -> str:
        attention = self.spec.attention
        name, weights = f"/model/layers.{index}/attn", f"model.layers.{index}.attn"
        tensor = self.by_role["attn_qkv", index]
        past = [f"past_key_values.{index}.{kind}" for kind in ("key", "value")]
        if self.separate:
            qkv = self._projections(name, weights, x, tensor)
            tables = ["", ""]
        else:
            fused = self._matmul(
                f"{name}/qkv_proj/MatMul", f"{weights}.qkv_proj.MatMul.weight", x, tensor
            )
            qkv, tables = [fused, "", ""], ["cos_cache", "sin_cache"]
        window = attention.window
        mixed = f"{name}/GroupQueryAttention/output_0"
        return self._node(
            "GroupQueryAttention",
            f"{name}/GroupQueryAttention",
            [*qkv, *past, self.last, self.total, *tables],
            [self._known(mixed, attention.heads * attention.head_size)]
            + [f"present.{index}.{kind}" for kind in ("key", "value")],
            MICROSOFT,
            num_heads=attention.heads,
            kv_num_heads=attention.kv_heads,
            scale=float(np.float32(attention.head_size**-0.5)),
            # ONNX Runtime's window counts as transformers' does: the token itself included.
            local_window_size=-1 if window is None or window >= self.spec.context else window,
            softcap=0.0,
            do_rotary=0 if self.separate else 1,
            rotary_interleaved=0,
        )

    def _projections(self, name: str, weights: str, x: str, tensor: TensorRole) -> list[str]:
        """Queries, keys and values by themselves, the first two rotated."""
        attention, rope = self.spec.attention, self.spec.rope
        size = attention.head_size
        ends = np.cumsum([attention.heads, attention.kv_heads, attention.kv_heads]) * size
        partial = rope.dimensions != size
        found, begin = [], 0
        for kind, end in zip("qkv", ends.tolist(), strict=True):
            projected = self._matmul(
                f"{name}/{kind}_proj/MatMul",
                f"{weights}.{kind}_proj.MatMul.weight",
                x,
                tensor,
                (begin, end),
            )
            begin = end
            if kind != "v":
                heads = attention.heads if kind == "q" else attention.kv_heads
                width = heads * size
                projected = self._node(
                    "RotaryEmbedding",
                    f"{name}/{kind}_rotary/RotaryEmbedding",
                    [projected, self.position, "cos_cache", "sin_cache"],
                    domain=MICROSOFT,
                    interleaved=0,
                    # Only partial rotation needs them told; else the table's width tells.
                    num_heads=heads if partial else 0,
                    rotary_embedding_dim=rope.dimensions if partial else 0,
                )
                self._known(projected, width)
            found.append(projected)
        return found

    # --- what goes in and comes out ---

    def _inputs(self) -> list[TensorInfo]:
        ids = ("batch_size", "sequence_length")
        inputs = [
            TensorInfo("input_ids", "int64", ids),
            TensorInfo("attention_mask", "int64", ("batch_size", "total_sequence_length")),
        ]
        if self.separate:
            inputs.append(TensorInfo("position_ids", "int64", ids))
        return inputs + self._cache("past_key_values", "past_sequence_length")

    def _outputs(self) -> list[TensorInfo]:
        shape = ("batch_size", "sequence_length", self.spec.vocabulary)
        logits = TensorInfo("logits", self.float, shape)
        return [logits, *self._cache("present", "total_sequence_length")]

    def _cache(self, prefix: str, length: str) -> list[TensorInfo]:
        attention = self.spec.attention
        shape = ("batch_size", attention.kv_heads, length, attention.head_size)
        return [
            TensorInfo(f"{prefix}.{layer}.{kind}", self.float, shape)
            for layer in range(self.spec.layers)
            for kind in ("key", "value")
        ]
