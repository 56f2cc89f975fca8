"""The Hugging Face target: a folder that transformers and vLLM load, by compressed-tensors."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from phiquant import safetensors
from phiquant.architectures.spec import ModelSpec, TensorRole
from phiquant.checkpoint import Checkpoint
from phiquant.codecs import find_codec
from phiquant.errors import UsageError
from phiquant.measure.largest import largest_magnitudes
from phiquant.plan import PlannedTarget, PlannedTensor
from phiquant.recipes import gptq
from phiquant.recipes.hf import FLOATS, GROUPS, Assignment, Scheme, assign
from phiquant.targets.folder import folder_target
from phiquant.targets.gguf_metadata import SourceFacts
from phiquant.targets.hf_card import model_card
from phiquant.targets.names import Target
from phiquant.targets.safetensors_files import StoredTensor, check, planned_files, shards
from phiquant.targets.source_files import copied_files
from phiquant.tensor import check_best

# Of the source's own quantization, or code that is not copied along.
_DROPPED = ("quantization", "quantization_config", "auto_map", "_name_or_path")


@dataclass(frozen=True)
class Options:
    """What a target's options say; None where they don't. A group of 0 is a whole row."""

    group: int | None
    symmetric: bool | None
    dtype: str
    bits: int | None = None
    version: int | None = None


def plan_hf(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    facts: SourceFacts,
    target: Target,
    *,
    best: bool = False,
    overrides: Iterable[tuple[str, str]] = (),
    importance: Mapping[str, NDArray[np.float32]] | None = None,
) -> PlannedTarget:
    """Plan the Hugging Face folder of a checkpoint.

    Parameters
    ----------
    facts : SourceFacts
    best : bool
        Search scales and zero points for the least squared error.
    overrides : iterable of (glob, name)
        On source tensor names; see :func:`phiquant.recipes.hf.scheme_of`.
    importance : mapping of str to float32 array, optional
        Weights of columns by source tensor name, for ``best``.

    Raises
    ------
    phiquant.UsageError, phiquant.UnsupportedError, phiquant.FormatError
        Options, groups or globs that make no sense, a search that is not built, no tokenizer.
    """
    options = parse_options(target, spec)
    assignment = assign(
        spec,
        target.preset,
        group=options.group,
        symmetric=options.symmetric,
        bits=options.bits,
        version=options.version,
        overrides=overrides,
    )
    spread = [name for name, scheme in assignment.schemes.items() if scheme and scheme.has_global]
    globals_ = _globals(checkpoint, spread, FLOATS[options.dtype][0])
    stored = [
        _stored(
            tensor,
            assignment.schemes.get(tensor.source),
            options.dtype,
            best,
            importance or {},
            globals_.get(tensor.source),
        )
        for tensor in spec.tensors
    ]
    files, index = planned_files(shards(stored), {"format": "pt"})
    texts = {
        **({} if index is None else {safetensors.INDEX: index}),
        "config.json": config(facts.config, spec, assignment, dtype=FLOATS[options.dtype][1]),
        "README.md": model_card(facts.name, str(target), facts.card, assignment, best),
        **copied_files(checkpoint.folder),
    }
    return folder_target(
        target, facts.name, files, texts, notes=_notes(assignment), check=check, hint=_hint
    )


def parse_options(target: Target, spec: ModelSpec) -> Options:
    """The options of an ``hf:`` target.

    Raises
    ------
    phiquant.UsageError
        An option that there is not, or a value that it cannot have.
    """
    group: int | None = None
    symmetric: bool | None = None
    bits: int | None = None
    version: int | None = None
    dtype = _own_dtype(target, spec)
    for key, value in target.options:
        if key == "group" and value == "channel":
            group = 0
        elif key == "group" and isinstance(value, str) and value.isdigit():
            group = int(value)
            if group not in GROUPS or group == 0:
                raise UsageError(
                    f"'{target}': there are groups of 16, 32, 64, 128 and channel, not {value}",
                    remedy="Choose one of them.",
                )
        elif key in ("sym", "asym") and value is True and symmetric is None:
            symmetric = key == "sym"
        elif key == "dtype" and value in FLOATS and target.preset not in FLOATS:
            dtype = str(value)
        elif key == "bits" and target.preset == "gptq" and str(value) in map(str, gptq.BITS):
            bits = int(str(value))
        elif key == "format" and target.preset == "gptq" and value in ("v1", "v2"):
            version = int(str(value)[1:])
        else:
            word = key if value is True else f"{key}={value}"
            raise UsageError(
                f"'{target}': Hugging Face targets have no option '{word}' here",
                remedy="There are group=16|32|64|128|channel, sym or asym, "
                "and dtype=bf16|fp16|fp32; of gptq bits=2|3|4|8 and format=v1|v2, too.",
            )
    return Options(group, symmetric, dtype, bits, version)


def config(
    source: Mapping[str, object], spec: ModelSpec, assignment: Assignment, *, dtype: str
) -> bytes:
    """The text of ``config.json``: the source's, and how matrices are held.

    Parameters
    ----------
    dtype : str
        ``bfloat16``, ``float16`` or ``float32``: of what is not quantized, and of scales.
    """
    made = {key: value for key, value in source.items() if key not in _DROPPED}
    # Versions of transformers before 4.56 know the older name only.
    made["torch_dtype"] = made["dtype"] = dtype
    made["tie_word_embeddings"] = spec.tied
    quantization = assignment.config()
    if quantization is not None:
        made["quantization_config"] = quantization
    return (json.dumps(made, indent=2, ensure_ascii=False) + "\n").encode()


def _own_dtype(target: Target, spec: ModelSpec) -> str:
    """The type of scales and of what is not quantized: the preset's own, else the source's."""
    if target.preset in FLOATS:
        return target.preset
    if target.preset in gptq.LAYOUTS:
        return "fp16"  # as their scales are, and what kernels of AWQ compute in
    return {"float16": "fp16", "float32": "fp32"}.get(spec.dtype or "", "bf16")


def _globals(checkpoint: Checkpoint, names: list[str], dtype: str) -> dict[str, np.float32]:
    """What NVFP4's scales of each matrix are multiplied by, that the largest becomes 448.

    torch divides a number by a tensor by its reciprocal, in the weights' type: two roundings. Of
    float16 weights, whose reciprocals times 2688 are mostly no float16, that would leave all
    scales as they are; there it is done in float32.
    """
    if not names:
        return {}
    kind = ml_dtypes.bfloat16 if dtype == "bf16" else np.float32
    found = {}
    for name, largest in largest_magnitudes(checkpoint, names).items():
        with np.errstate(over="ignore", divide="ignore"):
            inverse = (np.float32(1) / np.float32(kind(largest))).astype(kind)
            value = (np.float32(inverse) * np.float32(448 * 6)).astype(kind).astype(np.float32)
        found[name] = value if np.isfinite(value) else np.float32(1)
    return found


def _stored(
    tensor: TensorRole,
    scheme: Scheme | None,
    dtype: str,
    best: bool,
    importance: Mapping[str, NDArray[np.float32]],
    global_: np.float32 | None = None,
) -> list[StoredTensor]:
    """What the container holds of a source tensor."""
    codec, _, kind = FLOATS[dtype]
    if scheme is None:
        size = find_codec(codec).bytes_of(tensor.elements // tensor.shape[-1], tensor.shape[-1])
        plain = PlannedTensor(tensor.source, tensor.source, codec, tensor.shape, 0, size)
        return [StoredTensor(kind, plain)]
    rows, columns = tensor.shape
    name = scheme.codec(codec)
    if global_ is not None:
        name = find_codec(f"{name},global={int(global_.view(np.uint32)):08x}").name
    if best:
        check_best(find_codec(name), tensor=tensor.source)
    weights = importance.get(tensor.source) if best else None
    planes = find_codec(name).planes(rows, columns)
    groups = planes[1].row_elements
    shapes = _containers(scheme, rows, columns, groups, kind)
    found = []
    if scheme.format == "pack-quantized":
        # What the codes' own shape does not tell: where a row's last word has codes to spare.
        shape = np.array(tensor.shape, "<i8").tobytes()
        literal = PlannedTensor(
            _part(tensor, "weight_shape"), None, "i64", (2,), 0, len(shape), literal=shape, count=0
        )
        found.append(StoredTensor("I64", literal))
    if global_ is not None:
        raw = global_.tobytes()
        literal = PlannedTensor(
            _part(tensor, "weight_global_scale"), None, "f32", (1,), 0, 4, literal=raw, count=0
        )
        found.append(StoredTensor("F32", literal))
    if scheme.layout.startswith("gptq"):
        # Which group a column is in: the next where the last ends.
        index = (np.arange(columns) // (scheme.group or columns)).astype("<i4").tobytes()
        literal = PlannedTensor(
            _part(tensor, "g_idx"), None, "i32", (columns,), 0, len(index), literal=index, count=0
        )
        found.append(StoredTensor("I32", literal))
    for plane, (part, type_, container) in sorted(shapes.items(), key=lambda item: item[0] == 1):
        planned = PlannedTensor(
            _part(tensor, part),
            tensor.source,
            name,
            container,
            0,
            planes[plane].nbytes,
            importance=weights,
            best=best,
            plane=plane,
            count=rows * columns if plane == 0 else None,
        )
        found.append(StoredTensor(type_, planned))
    return found


def _containers(
    scheme: Scheme, rows: int, columns: int, groups: int, kind: str
) -> Mapping[int, tuple[str, str, tuple[int, ...]]]:
    """Each plane's part of the tensor's name, type and shape."""
    if scheme.layout:
        words = rows * scheme.bits // 32
        codes = (columns * scheme.bits // 32, rows)
        return {
            0: ("qweight", "I32", (columns, words) if scheme.layout == "awq" else codes),
            1: ("scales", "F16", (groups, rows)),
            2: ("qzeros", "I32", (groups, words)),
        }
    scales = ("weight_scale", kind, (rows, groups))
    if scheme.activations:
        type_ = "F8_E4M3" if scheme.small_floats else "I8"
        return {0: ("weight", type_, (rows, columns)), 1: scales}
    if scheme.small_floats:
        # Powers of two by their exponents, or 8-bit floats, whatever the type of the other floats.
        scales = ("weight_scale", "F8_E4M3" if scheme.has_global else "U8", (rows, groups))
        return {0: ("weight_packed", "U8", (rows, columns // 2)), 1: scales}
    words = -(-columns * scheme.bits // 32)
    found = {0: ("weight_packed", "I32", (rows, words)), 1: scales}
    if not scheme.symmetric:
        found[2] = ("weight_zero_point", "I32", (-(-rows * scheme.bits // 32), groups))
    return found


def _part(tensor: TensorRole, part: str) -> str:
    return f"{tensor.source.removesuffix('.weight')}.{part}"


def _notes(assignment: Assignment) -> tuple[str, ...]:
    """What users should know: which runtimes take which schemes."""
    packed = {s for s in assignment.schemes.values() if s is not None and not s.activations}
    notes = []
    if layouts := {scheme.layout for scheme in packed} - {""}:
        method = "AWQ" if layouts == {"awq"} else "GPTQ"
        notes.append(
            f"the layout is {method}'s, and weights are rounded to the nearest codes: {method}'s "
            "own calibration is not carried out; transformers loads it with gptqmodel"
        )
        if method == "GPTQ" and any(not s.symmetric or s.bits != 4 for s in packed):
            notes.append("on processors vLLM takes GPTQ's layout with 4 bits, symmetric, only")
        return tuple(notes)
    if names := sorted({str(scheme) for scheme in packed if scheme.small_floats}):
        notes.append(f"vLLM has kernels for {' and '.join(names)} on GPUs only")
    if bits := sorted({scheme.bits for scheme in packed if scheme.bits != 4}):
        listed = " and ".join(map(str, bits))
        notes.append(f"vLLM runs packed weights of {listed} bits on GPUs only; 4 bits anywhere")
    if any(not scheme.symmetric for scheme in packed):
        notes.append(
            "compressed-tensors 0.18 to 0.20 cannot load zero points in transformers, unless with "
            "CompressedTensorsConfig(dequantize=True); 0.17 can, and vLLM"
        )
    return tuple(notes)


def _hint(path: Path) -> str:
    code = (
        f"from transformers import pipeline; run = pipeline('text-generation', {str(path)!r}); "
        "print(run('Hello', max_new_tokens=20)[0]['generated_text'])"
    )
    return f"python -c {shlex.quote(code)}"
