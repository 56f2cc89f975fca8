"""Gives each tensor the codec that llama-quantize gives it, or that the user asks for."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from phiquant.architectures.spec import ModelSpec, TensorRole
from phiquant.errors import UnsupportedError, UsageError
from phiquant.recipes.mixes import ALIASES, TABLES, Mix, MixName, Place, Rules

#: Columns that one block of a codec holds: a row must be a multiple of it.
BLOCK: Final[Mapping[str, int]] = {
    **dict.fromkeys(("f32", "f16", "bf16"), 1),
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4"), 32),
    **dict.fromkeys(("q2_0", "nvfp4"), 64),
    "q1_0": 128,
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "tq1_0", "tq2_0", "iq4_xs"), 256),
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"), 256),
}

# What takes the place of a codec whose block does not divide a row.
_FALLBACK: Final[Mapping[str, str]] = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s"), "iq4_nl"),
    **dict.fromkeys(("iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_0", "q2_k", "q3_k", "tq1_0", "tq2_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}

_NEED_IMPORTANCE: Final = ("iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s")


@dataclass(frozen=True)
class Fallback:
    """A codec whose blocks do not divide a tensor's rows, and the one that it got instead."""

    source: str
    columns: int
    wanted: str
    got: str


@dataclass(frozen=True)
class Assignment:
    """The codec of every tensor, by its name in the source, and which of them are fallbacks."""

    codecs: Mapping[str, str]
    fallbacks: tuple[Fallback, ...]


def ftype_name(text: str) -> str:
    """The ftype in phiquant's spelling: lower case, aliases resolved (``Q4_K`` is ``q4_k_m``).

    Raises
    ------
    phiquant.UsageError
        llama-quantize has no such ftype.
    """
    name = text.strip().lower()
    name = ALIASES.get(name, name)
    if name not in TABLES["current"]:
        close = difflib.get_close_matches(name, TABLES["current"], n=3)
        remedy = f"Did you mean {' or '.join(close)}?" if close else None
        raise UsageError(f"'{text}' is no ftype of llama-quantize", remedy=remedy)
    return name


def ftype_number(ftype: str) -> int:
    """What ``general.file_type`` says for an ftype (``llama_ftype`` in llama.h)."""
    return TABLES["current"][ftype_name(ftype)].ftype


def assign(
    spec: ModelSpec,
    ftype: str,
    *,
    mix: MixName = "current",
    importance: bool = False,
    pure: bool = False,
    output_type: str | None = None,
    embedding_type: str | None = None,
    overrides: Iterable[tuple[str, str]] = (),
) -> Assignment:
    """Choose the codec of every tensor as llama-quantize does.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    ftype : str
        A name that llama-quantize knows, in any case.
    mix : {"current", "published"}
        Its rules today, or those that the published Phi files were made by.
    importance : bool
        Whether an importance matrix will be used: some ftypes then mix differently.
    pure : bool
        Every matrix gets the ftype's base codec.
    output_type, embedding_type : str, optional
        Codecs of the output matrix and the embedding table. Where one table is both,
        ``embedding_type`` wins, and ``output_type`` applies to it, with ``pure`` and unquantized
        ftypes too, where llama-quantize drops it.
    overrides : iterable of (glob, codec)
        Globs on source tensor names (case matters); the first that matches decides. They cannot
        quantize vectors.

    Returns
    -------
    Assignment
        Vectors (norms) are F32, as the converter leaves them. A codec whose block does not divide a
        tensor's rows gives way to llama-quantize's fallback, also where the user asked for it.

    Raises
    ------
    phiquant.UsageError
        An unknown ftype, mix or codec, or a glob that matches no matrix.
    phiquant.UnsupportedError
        Rows for which no fallback exists.

    Notes
    -----
    As in llama-quantize, an overridden matrix is not counted when the others of its role are told
    "the first eighth" or "every third": overriding the first moves the rest up by one.
    """
    name = ftype_name(ftype)
    if mix not in TABLES:
        raise UsageError(f"there is no mix '{mix}'", remedy="There are current and published.")
    chosen = _Overrides(output_type, embedding_type, overrides)
    rules = TABLES[mix][name]
    counts = {"attn_qkv": 0, "attn_output": 0, "ffn_gate_up": 0, "ffn_down": 0}
    codecs: dict[str, str] = {}
    fallbacks: list[Fallback] = []
    for tensor in spec.tensors:
        if len(tensor.shape) < 2:
            codecs[tensor.source] = "f32"
            continue
        wanted = chosen.codec(tensor, spec)
        if wanted is None and pure:
            wanted = rules.base
        if wanted is None and tensor.role in ("embedding", "output"):
            wanted = _table_codec(tensor, spec, rules)
        if wanted is None:
            place = Place(counts[tensor.role], spec.layers, spec.attention.group, importance)
            wanted = _first(_rules_of(tensor, rules), place) or rules.base
            counts[tensor.role] += 1
        got = _fit(tensor, wanted)
        if got != wanted:
            fallbacks.append(Fallback(tensor.source, tensor.shape[-1], wanted, got))
        codecs[tensor.source] = got
    chosen.refuse_unused()
    return Assignment(codecs, tuple(fallbacks))


def needs_importance(tensor: TensorRole, codec: str, ftype: str) -> bool:
    """Whether llama-quantize refuses to give a tensor this codec without an importance matrix."""
    if tensor.role in ("embedding", "output"):
        return False
    return codec in _NEED_IMPORTANCE or (codec == "q2_k" and ftype_name(ftype) == "q2_k_s")


def codec_name(text: str) -> str:
    """The codec in phiquant's spelling.

    Raises
    ------
    phiquant.UsageError
        ggml has no such type.
    """
    name = text.strip().lower()
    if name not in BLOCK:
        close = difflib.get_close_matches(name, BLOCK, n=3)
        remedy = f"Did you mean {' or '.join(close)}?" if close else None
        if name in TABLES["current"]:
            remedy = f"{text} is a mix of codecs; its base is {TABLES['current'][name].base}."
        raise UsageError(f"'{text}' is no codec of GGUF", remedy=remedy)
    return name


class _Overrides:
    """The user's own choices, and which of the globs have matched something."""

    def __init__(
        self, output: str | None, embedding: str | None, globs: Iterable[tuple[str, str]]
    ) -> None:
        self._output = None if output is None else codec_name(output)
        self._embedding = None if embedding is None else codec_name(embedding)
        self._globs = [(glob, codec_name(codec)) for glob, codec in globs]
        self._used: set[str] = set()

    def codec(self, tensor: TensorRole, spec: ModelSpec) -> str | None:
        """The codec that the user chose for a matrix; the more special choice first."""
        matches = [pair for pair in self._globs if fnmatch.fnmatchcase(tensor.source, pair[0])]
        if matches:
            self._used.update(glob for glob, _ in matches)
            return matches[0][1]
        if tensor.role == "embedding":
            return self._embedding or (self._output if spec.tied else None)
        return self._output if tensor.role == "output" else None

    def refuse_unused(self) -> None:
        for glob, _ in self._globs:
            if glob not in self._used:
                remedy = "Globs are on source names; 'phiquant inspect' lists them."
                raise UsageError(f"no matrix matches '{glob}'", remedy=remedy)


def _table_codec(tensor: TensorRole, spec: ModelSpec, mix: Mix) -> str:
    if tensor.role == "embedding" and not spec.tied:
        return mix.embedding or mix.base
    # The rule asks whether the base codec fits, although it will use another one: 320 columns are
    # fine for Q4_0 and then fall back from Q6_K, but are not for Q4_K. Either way they end as Q8_0.
    if tensor.shape[-1] % BLOCK[mix.base]:
        return "q8_0" if mix.output else mix.base
    return mix.output or mix.base


def _rules_of(tensor: TensorRole, mix: Mix) -> Rules:
    if tensor.role == "attn_qkv":
        return mix.attn_qkv
    if tensor.role == "attn_output":
        return mix.attn_output
    return mix.ffn_gate_up if tensor.role == "ffn_gate_up" else mix.ffn_down


def _first(rules: Rules, place: Place) -> str | None:
    return next((codec for condition, codec in rules if condition(place)), None)


def _fit(tensor: TensorRole, codec: str) -> str:
    """The codec, or what takes its place where its block does not divide the tensor's rows."""
    columns = tensor.shape[-1]
    if columns % BLOCK[codec] == 0:
        return codec
    instead = _FALLBACK.get(codec, codec)
    if instead == codec and BLOCK[codec] > 32:
        cause = f"has rows of {columns}, no multiple of {codec}'s block of {BLOCK[codec]}"
        raise UnsupportedError(cause, tensor=tensor.source, remedy="Choose another codec for it.")
    return instead if columns % BLOCK[instead] == 0 else "f16"
