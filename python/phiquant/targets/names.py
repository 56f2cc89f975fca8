"""The names that users give: targets (``gguf:q4_k_m``), overrides (``GLOB=CODEC``), and outputs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from phiquant.errors import UsageError
from phiquant.recipes.llama_quantize import BLOCK, codec_name
from phiquant.recipes.mixes import ALIASES, CURRENT

#: The ftypes of llama-quantize.
GGUF_PRESETS: Final = tuple(CURRENT)

#: The codecs that GGUF tensors can be encoded in.
GGUF_CODECS: Final = tuple(BLOCK)

# Formats of later versions, with presets that people will try, so that the answer is "not yet" and
# no guess.
_LATER: Final[Mapping[str, tuple[str, ...]]] = {
    "onnx": ("fp32", "fp16", "int8", "int4"),
    "openvino": (*("fp16", "int8", "int8_sym", "int4", "int4_sym", "int4_asym", "nf4", "mxfp4"),),
    "mlx": (
        *("bf16", "fp16", "2bit", "3bit", "4bit", "5bit", "6bit", "8bit", "mixed_3_6", "mxfp4"),
    ),
    "hf": ("w4a16", "w8a16", "w8a8", "fp8", "nvfp4", "mxfp4", "gptq", "awq", "bf16"),
}

_LIST = "'phiquant formats' lists what there is."


@dataclass(frozen=True)
class Target:
    """What to convert to.

    Attributes
    ----------
    format : str
        ``gguf``.
    preset : str
        In phiquant's spelling: lower case, aliases resolved.
    options : tuple of (key, value)
        ``key=value`` as given, and flags with the value True; sorted by key.
    """

    format: str
    preset: str
    options: tuple[tuple[str, str | bool], ...] = ()

    def __str__(self) -> str:
        words = [key if value is True else f"{key}={value}" for key, value in self.options]
        return ",".join([f"{self.format}:{self.preset}", *words])


@dataclass(frozen=True)
class Override:
    """A codec for the tensors whose source names match a glob; for one format or (None) all."""

    glob: str
    codec: str
    format: str | None = None


def parse_target(text: str) -> Target:
    """Parse ``format:preset[,key=value|flag...]``; a bare llama-quantize name means GGUF.

    Raises
    ------
    phiquant.UsageError
        An unknown or not yet built format or preset, or options that the format does not have.
    """
    head, *words = [part.strip() for part in text.split(",")]
    format_name, colon, preset = head.partition(":")
    format_name, preset = format_name.strip().lower(), preset.strip().lower()
    if not colon:
        format_name, preset = _bare(text, format_name)
    if format_name in _LATER:
        cause = f"'{text}': this version does not write {format_name} yet"
        raise UsageError(cause, remedy=f"It writes GGUF, as gguf:q4_k_m. {_LIST}")
    if format_name != "gguf":
        raise UsageError(f"'{text}': there is no format '{format_name}'", remedy=_guess(head))
    preset = _gguf_preset(text, preset)
    for word in words:
        key = word.partition("=")[0].strip()
        raise UsageError(f"'{text}': GGUF targets have no option '{key}'", remedy=_LIST)
    return Target("gguf", preset)


def parse_override(text: str) -> Override:
    """Parse ``[format:]GLOB=CODEC``, where the glob is on source tensor names.

    Raises
    ------
    phiquant.UsageError
        No ``=``, an empty glob, or a codec that is unknown or not built.
    """
    glob, equals, codec = text.rpartition("=")
    if not equals or not glob.strip() or not codec.strip():
        remedy = "Write GLOB=CODEC, as '*.down_proj.weight=q6_k'."
        raise UsageError(f"'{text}' is no override of a tensor's codec", remedy=remedy)
    glob = glob.strip()
    format_name, colon, rest = glob.partition(":")
    if colon and format_name.lower() in ("gguf", *_LATER):
        if format_name.lower() != "gguf":
            cause = f"'{text}': this version does not write {format_name.lower()} yet"
            raise UsageError(cause, remedy=_LIST)
        return Override(rest, gguf_codec(codec), "gguf")
    return Override(glob, gguf_codec(codec))


def gguf_codec(text: str) -> str:
    """A codec of GGUF in phiquant's spelling.

    Raises
    ------
    phiquant.UsageError
        ggml has no such type.
    """
    return codec_name(text)


def default_output(source_name: str, target: Target) -> str:
    """The result's name where none is given: ``NAME-PRESET.gguf``.

    Parameters
    ----------
    source_name : str
        Name of the source's folder or file, or a hub id, of which the last part counts.
    """
    name = PurePath(source_name.split("@", 1)[0] if "/" in source_name else source_name).name
    name = re.sub(r"\.(gguf|safetensors)$", "", name) or "model"
    return f"{name}-{target.preset}.gguf"


def _bare(text: str, name: str) -> tuple[str, str]:
    """A word without a colon: a preset of GGUF, or a format whose preset was forgotten."""
    if ALIASES.get(name, name) in CURRENT or name == "copy":
        return "gguf", name
    if name == "gguf" or name in _LATER:
        example = "q4_k_m" if name == "gguf" else _LATER[name][-1]
        cause = f"'{text}' names a format without a preset"
        raise UsageError(cause, remedy=f"Write {name}:PRESET, as {name}:{example}. {_LIST}")
    raise UsageError(f"there is no target '{text}'", remedy=_guess(name))


def _gguf_preset(text: str, preset: str) -> str:
    name = ALIASES.get(preset, preset)
    if name in GGUF_PRESETS:
        return name
    if name == "copy":
        cause = f"'{text}': copying is no conversion"
        raise UsageError(cause, remedy="Name the type of the result, as bf16.")
    raise UsageError(f"'{text}': GGUF has no preset '{preset}'", remedy=_guess(preset))


def _guess(word: str) -> str:
    """What the user may have meant."""
    known = {name: name for name in (*GGUF_PRESETS, *ALIASES)}
    known |= {f"gguf:{name}": f"gguf:{name}" for name in GGUF_PRESETS}
    later = {preset: f"{name}:{preset}" for name, presets in _LATER.items() for preset in presets}
    word = word.lower()
    if word in later and word not in known:
        return f"{later[word]} is for a later version. {_LIST}"
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}? {_LIST}" if close else _LIST
