"""What can be written, with the sizes that it gives a well-known model: for people who choose."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from phiquant.architectures import ModelSpec, spec_from_config
from phiquant.codecs import all_codecs, find_codec
from phiquant.onnx import nbytes_of
from phiquant.recipes import hf, mlx
from phiquant.recipes.llama_quantize import assign, needs_importance
from phiquant.targets import onnx_options
from phiquant.targets.hf import parse_options as hf_options
from phiquant.targets.mlx import parse_options as mlx_options
from phiquant.targets.names import PRESETS, Target
from phiquant.targets.onnx_graph import model_graph
from phiquant.targets.openvino_options import settings_of

#: The model that sizes are told for.
EXAMPLE = "Phi-3.5-mini"

# Its shape. The rope does not matter here: it has no weights.
_EXAMPLE_CONFIG = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

_PRESETS = {
    "f32": "float32: every bit of any source, at twice its size",
    "f16": "float16: refused where a weight is too large for it",
    "bf16": "bfloat16: published Phi weights as they are",
    "q8_0": "8-bit blocks of 32: nearly the original",
    "q6_k": "6-bit super-blocks: hard to tell from the original",
    "q5_k_m": "5-bit super-blocks, 6 bits where it matters",
    "q5_k_s": "5-bit super-blocks",
    "q5_1": "5-bit blocks with a minimum, of the older kind",
    "q5_0": "5-bit blocks, of the older kind",
    "q4_k_m": "4-bit super-blocks, 6 bits in places: the usual choice",
    "q4_k_s": "4-bit super-blocks, 5 bits in a few tensors",
    "q4_0": "4-bit blocks, of the older kind: simple and fast",
    "q4_1": "4-bit blocks with a minimum, of the older kind",
    "iq4_nl": "4-bit blocks of 32, denser around zero",
    "iq4_xs": "the same grid in super-blocks, smaller",
    "q3_k_l": "3-bit super-blocks, 5 bits where it matters",
    "q3_k_m": "3-bit super-blocks, 4 and 5 bits where it matters",
    "q3_k_s": "3-bit super-blocks",
    "iq3_m": "3-bit lattice, 4 bits where it matters",
    "iq3_s": "3-bit lattice",
    "iq3_xs": "3-bit lattices mixed; needs importance",
    "iq3_xxs": "3-bit lattice, the smaller one; needs importance",
    "q2_k": "2-bit super-blocks, 3 bits where it matters",
    "q2_k_s": "2-bit super-blocks; needs importance",
    "iq2_m": "2-bit lattice, 3 bits in places; needs importance",
    "iq2_s": "2-bit lattice; needs importance",
    "iq2_xs": "2-bit lattice, smaller; needs importance",
    "iq2_xxs": "2-bit lattice, the smallest; needs importance",
    "iq1_m": "under 2 bits; needs importance",
    "iq1_s": "about 1.6 bits; needs importance",
    "tq2_0": "ternary weights at 2 bits: for models trained so",
    "tq1_0": "ternary weights at 1.7 bits: for models trained so",
    "q2_0": "2-bit blocks of 64, plain",
    "q1_0": "signs only: for models trained so",
    "mxfp4_moe": "for mixtures of experts; Phi's matrices become q8_0",
}


_ONNX_PRESETS = {
    "fp32": "float32 all through: nothing is lost",
    "fp16": "float16: refused where a weight is too large",
    "int8": "8-bit blocks of 32, a float32 embedding",
    "int8-dynamic": "8-bit rows and activations, ranges of each run",
    "int8-static": "8-bit rows and activations, calibrated ranges",
    "int4": "4-bit blocks of 32, a float32 embedding",
}

_MLX_PRESETS = {
    "bf16": "bfloat16: published Phi weights as they are",
    "fp16": "float16: refused where a weight is too large for it",
    "8bit": "8 bits in groups of 64: nearly the original",
    "6bit": "6 bits in groups of 64: hard to tell from the original",
    "5bit": "5 bits in groups of 64",
    "4bit": "4 bits in groups of 64: the usual choice",
    "3bit": "3 bits in groups of 64",
    "2bit": "2 bits in groups of 64",
    "mixed_4_6": "4 bits, 6 where it matters",
    "mixed_3_6": "3 bits, 6 where it matters",
    "mixed_3_4": "3 bits, 4 where it matters",
    "mixed_2_6": "2 bits, 6 where it matters",
    "mxfp8": "8-bit floats in groups of 32 with a power of two",
    "mxfp4": "4-bit floats in groups of 32 with a power of two",
    "nvfp4": "4-bit floats in groups of 16 with an 8-bit float",
}

_HF_PRESETS = {
    "fp32": "float32: every bit of any source, at twice its size",
    "bf16": "bfloat16: published Phi weights as they are",
    "fp16": "float16: refused where a weight is too large for it",
    "w8a8": "8 bits, a scale a row; activations, too",
    "fp8": "8-bit floats, a scale a row; activations, too",
    "w8a16": "8 bits in groups of 128: nearly the original",
    "w4a16": "4 bits in groups of 128: the usual choice",
    "mxfp4": "4-bit floats in groups of 32 with a power of two",
    "nvfp4": "4-bit floats in groups of 16 with an 8-bit float",
    "gptq": "4 bits in groups of 128, in the layout of GPTQ",
    "awq": "4 bits in groups of 128, in the layout of AWQ",
    "w3a16": "3 bits in groups of 128",
    "w2a16": "2 bits in groups of 128",
}

_OPENVINO_PRESETS = {
    "fp16": "float16: refused where a weight is too large for it",
    "int8": "8 bits with zero points, a scale a row",
    "int8_sym": "8 bits, a scale a row",
    "int4": "4 bits with zero points: optimum-intel's default",
    "int4_asym": "4 bits with zero points, groups of 128; ends 8 bits",
    "int4_sym": "4 bits, groups of 128; embedding and output 8 bits",
    "nf4": "4 bits: a normal distribution's quantiles; ends 8 bits",
    "mxfp4": "4-bit floats in groups of 32; ends 8-bit floats",
}


@dataclass(frozen=True)
class TargetFacts:
    """One target.

    Attributes
    ----------
    target : str
        As ``--to`` takes it: ``gguf:q4_k_m``.
    about : str
        One line.
    bits_per_weight : float
        Of the example model, all tensors together.
    example_bytes : int
        Size of the example model's tensors.
    """

    target: str
    about: str
    bits_per_weight: float
    example_bytes: int


_ABOUT = {
    "gguf": _PRESETS,
    "onnx": _ONNX_PRESETS,
    "openvino": _OPENVINO_PRESETS,
    "mlx": _MLX_PRESETS,
    "hf": _HF_PRESETS,
}


def all_targets() -> tuple[TargetFacts, ...]:
    """Every target of this version, the most exact first."""
    spec = spec_from_config(_EXAMPLE_CONFIG)
    rows = []
    for kind, presets in PRESETS.items():
        for preset in presets:
            size = weights_bytes(spec, Target(kind, preset))
            bits = round(8 * size / spec.parameters, 3)
            rows.append(TargetFacts(f"{kind}:{preset}", about(kind, preset), bits, size))
    return tuple(sorted(rows, key=lambda row: -row.example_bytes))


def about(kind: str, preset: str) -> str:
    """One line about a preset of a format."""
    return _ABOUT[kind].get(preset, "")


def weights_bytes(spec: ModelSpec, target: Target) -> int:
    """Bytes of a model's tensors in a target; headers, tokenizers and rope tables not counted.

    Raises
    ------
    phiquant.UsageError
        Options that make no sense, or a group that does not fit the model.
    """
    of = {"gguf": _gguf, "onnx": _onnx, "openvino": _openvino, "mlx": _mlx, "hf": _hf}
    return of[target.format](spec, target)


def _gguf(spec: ModelSpec, target: Target) -> int:
    codecs = assign(spec, target.preset, importance=_needs_importance(spec, target.preset)).codecs
    return sum(
        find_codec(codecs[t.source]).bytes_of(math.prod(t.shape[:-1]), t.shape[-1])
        for t in spec.tensors
    )


def _onnx(spec: ModelSpec, target: Target) -> int:
    settings = onnx_options.settings_of(target)
    ranges = {tensor.source: (0.0, 1.0) for tensor in spec.tensors}  # of no size, whatever they are
    made = model_graph(spec, settings, onnx_options.grids_of(spec, settings), ranges)
    return sum(nbytes_of(item.dtype, item.shape) for item in made.stored if item.source)


def _mlx(spec: ModelSpec, target: Target) -> int:
    options = mlx_options(target, "bfloat16")
    packings = mlx.assign(spec, target.preset, group=options.group).packings
    plain = {"fp32": "f32", "fp16": "f16"}.get(options.dtype, "bf16")
    size = 0
    for tensor in spec.tensors:
        packing = packings.get(tensor.source)
        if packing is None:
            size += find_codec(plain).bytes_of(1, tensor.elements)
        else:
            size += sum(p.nbytes for p in find_codec(packing.codec(plain)).planes(*tensor.shape))
    return size


def _hf(spec: ModelSpec, target: Target) -> int:
    options = hf_options(target, spec)
    schemes = hf.assign(
        spec,
        target.preset,
        group=options.group,
        symmetric=options.symmetric,
        bits=options.bits,
        version=options.version,
    ).schemes
    plain = hf.FLOATS[options.dtype][0]
    size = 0
    for tensor in spec.tensors:
        scheme = schemes.get(tensor.source)
        if scheme is None:
            size += find_codec(plain).bytes_of(1, tensor.elements)
        else:
            size += sum(p.nbytes for p in find_codec(scheme.codec(plain)).planes(*tensor.shape))
    return size


def _openvino(spec: ModelSpec, target: Target) -> int:
    settings = settings_of(target, spec)
    size = 0
    for tensor in spec.tensors:
        codec = find_codec(settings.encoding(tensor).codec)
        rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
        planes = codec.planes(rows, columns)
        size += sum(p.nbytes for p in planes) if planes else codec.bytes_of(rows, columns)
    return size


def _needs_importance(spec: ModelSpec, preset: str) -> bool:
    codecs = assign(spec, preset).codecs
    return any(needs_importance(t, codecs[t.source], preset) for t in spec.tensors)


def to_json() -> dict[str, Any]:
    """Targets and codecs as plain data."""
    return {
        "example": EXAMPLE,
        "targets": [asdict(target) for target in all_targets()],
        "codecs": [asdict(codec) for codec in all_codecs()],
    }
