"""Compares what a ModelSpec needs with the tensors that a checkpoint has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from phiquant.architectures.spec import ModelSpec, TensorRole
from phiquant.errors import FormatError, ShapeError, UnsupportedError

#: The dtypes, in safetensors' spelling, that weights may have.
FLOAT_DTYPES = ("F32", "F16", "BF16")

# Buffers that old exports carry along; they follow from the config, and nothing reads them.
_BUFFERS = re.compile(r"\.rotary_emb\.(inv_freq|long_inv_freq|short_inv_freq|original_inv_freq)$")

# Names that only the tensors of quantized checkpoints have (GPTQ, AWQ, bitsandbytes,
# compressed-tensors, FP8).
_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_packed|weight_scale|weight_scale_inv|weight_zero_point"
    r"|input_scale|absmax|quant_map|SCB)$|\.quant_state\."
)
_ADAPTER = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)\b")
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


def check_tensors(
    spec: ModelSpec,
    entries: Mapping[str, tuple[str, tuple[int, ...]]],
    *,
    file: object = None,
    config_file: object = None,
) -> ModelSpec:
    """Check that a checkpoint holds exactly the tensors that its model needs.

    Parameters
    ----------
    spec : ModelSpec
        From the checkpoint's config.
    entries : mapping of str to (dtype, shape)
        Every tensor of the checkpoint; dtypes as safetensors spells them, in any case.
    file, config_file : optional
        Named in errors: the checkpoint, and the config that ``spec`` is from.

    Returns
    -------
    ModelSpec
        ``spec``; where the config ties the output to the embedding but the checkpoint has a
        ``lm_head.weight`` of its own, a spec with that tensor as its output, as llama.cpp's
        converter takes it.

    Raises
    ------
    phiquant.UnsupportedError
        The weights are quantized already, not floating point, or of an adapter.
    phiquant.FormatError
        A tensor is missing or unknown, or the number of layers is not the config's.
    phiquant.ShapeError
        A tensor's shape is not what the config says.
    """
    _refuse_quantized(entries, file)
    if spec.tied and "lm_head.weight" in entries:
        head = TensorRole("output", None, "lm_head.weight", (spec.vocabulary, spec.hidden_size))
        spec = replace(spec, tied=False, tensors=(*spec.tensors, head))
    _check_layers(spec, entries, file)
    needed = spec.by_source()
    missing = [name for name in needed if name not in entries]
    if missing:
        remedy = "The download may be incomplete: fetch the missing shards."
        if not any(name in needed for name in entries):
            remedy = f"It has '{next(iter(entries), 'nothing')}' instead: is it a Phi-3 checkpoint?"
        elif missing == ["lm_head.weight"]:
            remedy = "A model without one of its own has tie_word_embeddings true in config.json."
        cause = f"the checkpoint lacks {_listed(missing)}"
        raise FormatError(cause, file=file, tensor=missing[0], remedy=remedy)
    unknown = [name for name in entries if name not in needed and not _BUFFERS.search(name)]
    if unknown:
        cause = f"the checkpoint has {_listed(unknown)}, which a model of this config does not have"
        raise FormatError(cause, file=file, tensor=unknown[0])
    for tensor in spec.tensors:
        _check_tensor(tensor, entries[tensor.source], spec, file, config_file)
    return spec


def _check_tensor(
    tensor: TensorRole,
    entry: tuple[str, tuple[int, ...]],
    spec: ModelSpec,
    file: object,
    config_file: object,
) -> None:
    dtype, shape = entry
    if dtype.upper() not in FLOAT_DTYPES:
        cause = f"has dtype {dtype}; weights must be {', '.join(FLOAT_DTYPES)}"
        raise UnsupportedError(cause, file=file, tensor=tensor.source)
    if tuple(shape) == tensor.shape:
        return
    said_by = config_file or "the config"
    if tensor.role in ("embedding", "output") and shape[1:] == tensor.shape[1:]:
        cause = f"has {shape[0]} rows, but vocab_size is {spec.vocabulary} in {said_by}"
    else:
        cause = f"has shape {_shape(shape)}, but {said_by} makes it {_shape(tensor.shape)}"
    raise ShapeError(cause, file=file, tensor=tensor.source)


def _refuse_quantized(entries: Mapping[str, tuple[str, tuple[int, ...]]], file: object) -> None:
    for name, (dtype, _) in entries.items():
        if _QUANTIZED.search(name) or dtype.upper().startswith(("F8_", "F4", "F6_")):
            cause = f"the checkpoint is quantized already (it has '{name}' of dtype {dtype})"
            remedy = "Convert the model's original weights."
            raise UnsupportedError(cause, file=file, tensor=name, remedy=remedy)
        if _ADAPTER.search(name):
            cause = f"the checkpoint is an adapter (it has '{name}'), not a model"
            remedy = "Merge it into its base model first."
            raise UnsupportedError(cause, file=file, tensor=name, remedy=remedy)


def _check_layers(spec: ModelSpec, entries: Iterable[str], file: object) -> None:
    found = {int(match[1]) for name in entries if (match := _LAYER.match(name))}
    if not found or found == set(range(spec.layers)):
        return
    absent = sorted(set(range(spec.layers)) - found)
    cause = f"config.json says {spec.layers} layers, the checkpoint has {len(found)}"
    if absent:
        cause += f" (layer {absent[0]} is missing)"
    else:
        cause += f" (layer {min(found - set(range(spec.layers)))} is one too many)"
    raise FormatError(cause, file=file)


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown + (f" and {len(names) - 3} more tensors" if len(names) > 3 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
