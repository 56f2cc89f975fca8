"""The names that users give: targets (``gguf:q4_k_m``), overrides (``GLOB=CODEC``), and outputs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from phiquant.errors import UsageError
from phiquant.recipes.hf import PRESETS as HF_PRESETS
from phiquant.recipes.llama_quantize import BLOCK, codec_name
from phiquant.recipes.mixes import ALIASES, CURRENT
from phiquant.recipes.mlx import PRESETS as MLX_PRESETS

#: The ftypes of llama-quantize.
GGUF_PRESETS: Final = tuple(CURRENT)

#: The codecs that GGUF tensors can be encoded in.
GGUF_CODECS: Final = tuple(BLOCK)

#: Presets of every format that is written, GGUF's by name of ftype.
PRESETS: Final[Mapping[str, tuple[str, ...]]] = {
    "gguf": GGUF_PRESETS,
    "onnx": ("fp32", "fp16", "int8", "int8-dynamic", "int8-static", "int4"),
    "openvino": ("fp16", "int8", "int8_sym", "int4", "int4_sym", "int4_asym", "nf4", "mxfp4"),
    "mlx": MLX_PRESETS,
    "hf": HF_PRESETS,
}

_FORMATS = tuple(PRESETS)

_LIST = "'phiquant formats' lists what there is."


@dataclass(frozen=True)
class Target:
    """What to convert to.

    Attributes
    ----------
    format : str
        ``gguf``, ``openvino`` ...
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
    if format_name not in _FORMATS:
        raise UsageError(f"'{text}': there is no format '{format_name}'", remedy=_guess(head))
    preset = _gguf_preset(text, preset) if format_name == "gguf" else _preset(text, preset)
    options = _options(text, words)
    if format_name == "gguf" and options:
        raise UsageError(f"'{text}': GGUF targets have no option '{options[0][0]}'", remedy=_LIST)
    return Target(format_name, preset, options)


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
    format_name = format_name.strip().lower()
    if colon and format_name in _FORMATS:
        # Other formats' names for ways to store a matrix are their own to check.
        own = gguf_codec(codec) if format_name == "gguf" else codec.strip().lower()
        return Override(rest, own, format_name)
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
    """The result's name where none is given: ``NAME-PRESET.gguf``, or ``NAME-FORMAT-PRESET``.

    Parameters
    ----------
    source_name : str
        Name of the source's folder or file, or a hub id, of which the last part counts.
    """
    name = PurePath(source_name.split("@", 1)[0] if "/" in source_name else source_name).name
    name = re.sub(r"\.(gguf|safetensors)$", "", name) or "model"
    if target.format == "gguf":
        return f"{name}-{target.preset}.gguf"
    return f"{name}-{target.format}-{target.preset}"


def _bare(text: str, name: str) -> tuple[str, str]:
    """A word without a colon: a preset of GGUF, or a format whose preset was forgotten."""
    if ALIASES.get(name, name) in CURRENT or name == "copy":
        return "gguf", name
    if name in _FORMATS:
        example = "q4_k_m" if name == "gguf" else PRESETS[name][0]
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


def _preset(text: str, preset: str) -> str:
    """A preset of another format than GGUF."""
    format_name = text.partition(":")[0].strip().lower()
    known = PRESETS[format_name]
    if preset in known:
        return preset
    close = difflib.get_close_matches(preset, known, n=3, cutoff=0.5) or known
    names = [f"{format_name}:{name}" for name in close]
    raise UsageError(
        f"'{text}': {format_name} has no preset '{preset}'",
        remedy=f"Did you mean {' or '.join(names)}? {_LIST}",
    )


def _options(text: str, words: list[str]) -> tuple[tuple[str, str | bool], ...]:
    """Flags and ``key=value`` words; what they may be is each format's own to say."""
    found: dict[str, str | bool] = {}
    for word in words:
        key, equals, value = (part.strip() for part in word.partition("="))
        key = key.lower()
        if key in found:
            raise UsageError(f"'{text}': '{key}' is given twice", remedy="Give it once.")
        # Files have names of their own.
        found[key] = (value if key == "text" else value.lower()) if equals else True
    return tuple(sorted(found.items()))


def _guess(word: str) -> str:
    """What the user may have meant."""
    word = word.lower()
    known = {name: name for name in (*GGUF_PRESETS, *ALIASES)}
    known |= {f"{kind}:{name}": f"{kind}:{name}" for kind in PRESETS for name in PRESETS[kind]}
    others = [f"{kind}:{word}" for kind in PRESETS if word in PRESETS[kind]]
    close = [*others, *difflib.get_close_matches(word, known, n=3 - len(others[:2]), cutoff=0.5)]
    return f"Did you mean {' or '.join(close)}? {_LIST}" if close else _LIST
