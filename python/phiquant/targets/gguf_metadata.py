"""GGUF's view of a ModelSpec: metadata, tensor names, their order, as llama.cpp's tools have them.

The reference is ``convert_hf_to_gguf.py`` followed by ``llama-quantize`` (llama-cpp-python 0.3.36).
Known differences:

- ``general.name`` is the source's name or what the caller asks for; the converter in its
  ``--remote`` mode takes the whole hub id.
- Front matter of a card that goes beyond scalars and lists of scalars (``base_model`` given as
  mappings) is left out, and scalars stay text where YAML makes numbers or booleans of them, which
  the converter cannot write.
- ``attention_factor`` of the rope settings is written where it is given; the converter computes its
  own always.
- A card or ``generation_config.json`` that cannot be read gives no keys; the converter stops at
  such a card.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Union

from phiquant.architectures.spec import ModelSpec, TensorRole
from phiquant.errors import PhiquantError, UnsupportedError
from phiquant.recipes.llama_quantize import ftype_number
from phiquant.strict_json import read_json
from phiquant.targets.model_card import Card, read_card
from phiquant.targets.model_names import NameParts, name_parts, size_label, title

KvValue = Union[str, int, float, bool, list[str], list[int], list[float]]  # noqa: UP007
#: One metadata pair: key, type (``string``, ``uint32``, ``float32``, ``array:string`` ...), value.
Kv = tuple[str, str, KvValue]

QUANTIZATION_VERSION: Final = 2  # GGML_QNT_VERSION in ggml.h

_OUTER = {"embedding": "token_embd", "norm": "output_norm", "output": "output"}
# llama.cpp's name for a fused gate and up projection is the up projection's.
_IN_LAYER = {"ffn_gate_up": "ffn_up"}


@dataclass(frozen=True)
class SourceFacts:
    """What stands beside the weights and goes into ``general.*``.

    Attributes
    ----------
    name : str
        Name of the source's folder, or its hub id without the owner.
    config, generation : mapping
        ``config.json`` and ``generation_config.json``.
    card : mapping
        Front matter of the model card.
    """

    name: str
    config: Mapping[str, object] = field(default_factory=dict)
    generation: Mapping[str, object] = field(default_factory=dict)
    card: Card = field(default_factory=dict)


@dataclass(frozen=True)
class FileTensor:
    """One tensor of a GGUF file: from the source, or given by its values (float32).

    Attributes
    ----------
    name : str
        Its name in the file.
    tensor : TensorRole or None
        What it is made from; None where ``values`` hold it.
    values : tuple of float
        Rope factors, rounded to float32.
    """

    name: str
    tensor: TensorRole | None
    values: tuple[float, ...] = ()


def read_source_facts(
    folder: str | os.PathLike[str], config: Mapping[str, object], *, name: str | None = None
) -> SourceFacts:
    """Read the model card and generation settings of a checkpoint's folder, where there are any.

    Parameters
    ----------
    folder : path-like
        The checkpoint.
    config : mapping
        Its ``config.json``.
    name : str, optional
        For a hub download, whose folder is named after a commit: the hub id's last part.
    """
    path = Path(folder)
    generation: Mapping[str, object] = {}
    try:
        generation = read_json(path / "generation_config.json")
    except PhiquantError:
        pass  # it only recommends sampling settings, and is often absent
    own = name or path.resolve().name or "model"
    own = own.encode("utf-8", "replace").decode("utf-8")
    return SourceFacts(own, config, generation, read_card(path))


def tensor_name(tensor: TensorRole) -> str:
    """The tensor's name in a GGUF file, as ``blk.0.attn_qkv.weight``."""
    if tensor.layer is None:
        return _OUTER[tensor.role] + ".weight"
    return f"blk.{tensor.layer}.{_IN_LAYER.get(tensor.role, tensor.role)}.weight"


def rope_tensors(spec: ModelSpec) -> list[tuple[str, tuple[float, ...]]]:
    """The tensors of the rope's factors: names, and values as float32; none without longrope."""
    scaling = spec.rope.scaling
    if scaling is None:
        return []
    return [
        ("rope_factors_long.weight", _float32s(scaling.long_factors)),
        ("rope_factors_short.weight", _float32s(scaling.short_factors)),
    ]


def file_tensors(spec: ModelSpec) -> list[FileTensor]:
    """Every tensor of the file in llama-quantize's order: outer ones, layer by layer, by name."""
    outer = [FileTensor(name, None, values) for name, values in rope_tensors(spec)]
    inner = [FileTensor(tensor_name(tensor), tensor) for tensor in spec.tensors]

    def place(entry: FileTensor) -> tuple[int, str]:
        layer = entry.tensor.layer if entry.tensor else None
        return (-1 if layer is None else layer, entry.name)

    return sorted(outer + inner, key=place)


def metadata(
    spec: ModelSpec,
    facts: SourceFacts,
    ftype: str,
    tokenizer: Sequence[Kv] = (),
    *,
    name: str | None = None,
) -> list[Kv]:
    """All metadata of the file in order: general, model, tokenizer, and the file's own type last.

    Parameters
    ----------
    spec, facts
        The model and what is known about its source.
    ftype : str
        A name that llama-quantize knows.
    tokenizer : sequence of Kv
        The ``tokenizer.*`` pairs.
    name : str, optional
        ``general.name`` instead of the one that the converter would derive.

    Raises
    ------
    phiquant.UnsupportedError
        llama.cpp has no architecture for such a decoder.
    """
    return [*head(spec, facts, name=name), *tokenizer, *tail(ftype)]


def head(spec: ModelSpec, facts: SourceFacts, *, name: str | None = None) -> list[Kv]:
    """The pairs before the tokenizer's; see :func:`metadata`."""
    architecture = _architecture(spec)
    pairs: list[Kv] = [("general.architecture", "string", architecture)]
    scaling = spec.rope.scaling
    if scaling is not None:
        key = f"{architecture}.rope.scaling.attn_factor"
        pairs.append((key, "float32", scaling.attention_factor))
    pairs.append(("general.type", "string", "model"))
    return [*pairs, *general(spec, facts, name=name), *_model(spec, architecture)]


def tail(ftype: str) -> list[Kv]:
    """The two pairs that llama-quantize sets anew and that therefore stand last."""
    return [
        ("general.quantization_version", "uint32", QUANTIZATION_VERSION),
        ("general.file_type", "uint32", ftype_number(ftype)),
    ]


def general(spec: ModelSpec, facts: SourceFacts, *, name: str | None = None) -> list[Kv]:
    """Sampling, authorship, licence: from the model card, else the config, else the name."""
    parameters = spec.parameters + sum(len(values) for _, values in rope_tensors(spec))
    told = _authorship(facts, parameters)
    told["name"] = name or told.get("name") or facts.name
    told.setdefault("size_label", size_label(parameters))
    pairs = _sampling(facts.generation)
    for key in _AUTHORSHIP:
        if told.get(key):
            pairs.append(("general." + key, "string", told[key]))
    pairs += _relatives(facts.card, ("base_model", "base_models", "base_model_sources"), parameters)
    pairs += _relatives(facts.card, ("datasets", "dataset", "dataset_sources"), parameters)
    for key, sources in (
        ("tags", ("tags", "pipeline_tag")),
        ("languages", ("languages", "language")),
    ):
        values = [item for source in sources for item in _listed(facts.card.get(source))]
        if values:
            pairs.append(("general." + key, "array:string", values))
    return pairs


# Keys after ``general.`` in the converter's order, with the card's keys that give them, the first
# that is there.
_AUTHORSHIP: Final[Mapping[str, tuple[str, ...]]] = {
    "name": ("name", "model_name"),
    "author": ("author", "model_author", "model_creator"),
    "version": ("version", "model_version"),
    "organization": ("organization", "model_organization"),
    "finetune": ("finetune", "model_finetune"),
    "basename": ("basename", "model_basename", "model_type"),
    "description": ("description", "model_description"),
    "size_label": ("size_label", "model_size_label"),
    "license": ("license",),
    "license.name": ("license_name",),
    "license.link": ("license_link",),
    "source.url": ("url", "model_url"),
    "source.doi": ("doi", "model_doi"),
    "source.uuid": ("uuid", "model_uuid"),
    "source.repo_url": ("repo_url", "model_repo_url"),
}


def _authorship(facts: SourceFacts, parameters: int) -> dict[str, str]:
    told: dict[str, str] = {}
    for key, sources in _AUTHORSHIP.items():
        value = next((facts.card[source] for source in sources if source in facts.card), None)
        if value is not None:
            told[key] = value if isinstance(value, str) else ",".join(value)
    guesses = []
    former = facts.config.get("_name_or_path")
    if (
        isinstance(former, str) and former and former.count("/") <= 1
    ):  # a hub id, not somebody's path
        guesses.append(former)
    guesses.append(facts.name)
    for guess in guesses:
        parts = name_parts(guess, parameters)
        for key, value in _named(parts).items():
            told.setdefault(key, value)
    return told


def _named(parts: NameParts) -> dict[str, str]:
    found = {
        "name": title(parts.name),
        "organization": title(parts.organization) if parts.organization else None,
        "basename": parts.basename,
        "finetune": parts.finetune,
        "version": parts.version,
        "size_label": parts.size_label,
    }
    return {key: value for key, value in found.items() if value is not None}


_ADDRESS = re.compile(r"(https?|ssh)://")
_HUB_ADDRESS = re.compile(r"https?://huggingface\.co/([^/]+/[^/]+)")


def _relatives(card: Card, keys: tuple[str, ...], parameters: int) -> list[Kv]:
    """Base models or data sets: their number, and of each the name, version, owner, address."""
    key = next((key for key in keys if key in card), None)
    if key is None:
        return []
    group = "general.base_model" if keys[0] == "base_model" else "general.dataset"
    names = _listed(card[key])
    pairs: list[Kv] = [(f"{group}.count", "uint32", len(names))]
    for index, model_id in enumerate(names):
        address = model_id if _ADDRESS.match(model_id) else None
        if address is not None:
            hub = _HUB_ADDRESS.fullmatch(address)
            if hub is None:
                pairs.append((f"{group}.{index}.repo_url", "string", address))
                continue
            model_id = hub[1]
        parts = name_parts(model_id, parameters)
        found = _named(parts)
        if parts.organization:
            found["repo_url"] = f"https://huggingface.co/{parts.organization}/{parts.name}"
        elif address is not None:
            found["repo_url"] = address
        for what in ("name", "version", "organization", "repo_url"):
            if found.get(what):
                pairs.append((f"{group}.{index}.{what}", "string", found[what]))
    return pairs


_SAMPLING: Final = (
    ("top_k", "int32", "top_k"),
    ("top_p", "float32", "top_p"),
    ("min_p", "float32", "min_p"),
    ("xtc_probability", "float32", "xtc_probability"),
    ("xtc_threshold", "float32", "xtc_threshold"),
    ("temp", "float32", "temperature"),
    ("penalty_last_n", "int32", "penalty_last_n"),
    ("penalty_repeat", "float32", "penalty_repeat"),
    ("mirostat", "int32", "mirostat"),
    ("mirostat_tau", "float32", "mirostat_tau"),
    ("mirostat_eta", "float32", "mirostat_eta"),
)


def _sampling(generation: Mapping[str, object]) -> list[Kv]:
    """The sampling settings that the model's makers recommend."""
    pairs: list[Kv] = []
    sequence = generation.get("sequence")
    if isinstance(sequence, str) and sequence:
        pairs.append(("general.sampling.sequence", "string", sequence))
    for key, kind, source in _SAMPLING:
        value = generation.get(source)
        if source == "penalty_repeat" and source not in generation:
            value = generation.get("repetition_penalty")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if kind == "int32" and (not isinstance(value, int) or not -(2**31) <= value < 2**31):
            continue
        number = value if kind == "int32" else _float32(value)
        if number is not None:
            pairs.append(("general.sampling." + key, kind, number))
    return pairs


def _architecture(spec: ModelSpec) -> str:
    """The name of llama.cpp's graph for such a decoder."""
    roles = {tensor.role for tensor in spec.tensors}
    fused = {"attn_qkv", "attn_output", "ffn_gate_up", "ffn_down", "attn_norm", "ffn_norm"}
    if fused <= roles and spec.norm.kind == "rms" and spec.mlp.activation == "silu":
        return "phi3"
    raise UnsupportedError("llama.cpp has no architecture for this decoder")


def _model(spec: ModelSpec, architecture: str) -> list[Kv]:
    attention, rope = spec.attention, spec.rope
    values: list[Kv] = [
        ("context_length", "uint32", spec.context),
        ("rope.scaling.original_context_length", "uint32", rope.original_context),
        ("embedding_length", "uint32", spec.hidden_size),
        ("feed_forward_length", "uint32", spec.mlp.size),
        ("block_count", "uint32", spec.layers),
        ("attention.head_count", "uint32", attention.heads),
        ("attention.head_count_kv", "uint32", attention.kv_heads),
        ("attention.layer_norm_rms_epsilon", "float32", spec.norm.epsilon),
        ("rope.dimension_count", "uint32", rope.dimensions),
        ("rope.freq_base", "float32", rope.base),
        ("attention.sliding_window", "uint32", attention.window or 0),
    ]
    return [(f"{architecture}.{key}", kind, value) for key, kind, value in values]


def _listed(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _float32(value: float) -> float | None:
    """The nearest float32; None where there is none that is finite."""
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except (OverflowError, struct.error):
        return None
    return rounded if math.isfinite(rounded) else None


def _float32s(values: Sequence[float]) -> tuple[float, ...]:
    return struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}f", *values))
