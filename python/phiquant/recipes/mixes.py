"""The mixes of llama-quantize as data: what gets something other than the ftype's base codec.

Facts from ``src/llama-quant.cpp`` of llama.cpp as llama-cpp-python 0.3.36 vendors it; tests hold
every row against what llama-quantize itself wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal


@dataclass(frozen=True)
class Place:
    """Where a matrix stands: the ``index``-th of ``count`` of its role, in file order."""

    index: int
    count: int
    group: int
    importance: bool


Condition = Callable[[Place], bool]

#: Conditions with their codecs; the first that holds decides, else the ftype's base codec stays.
Rules = tuple[tuple[Condition, str], ...]


def always(place: Place) -> bool:
    """Every matrix of the role."""
    return True


def first_2(place: Place) -> bool:
    """The first two."""
    return place.index < 2


def first_4(place: Place) -> bool:
    """The first four."""
    return place.index < 4


def first_eighth(place: Place) -> bool:
    """The first eighth."""
    return place.index < place.count // 8


def first_sixteenth(place: Place) -> bool:
    """The first sixteenth."""
    return place.index < place.count // 16


def middle(place: Place) -> bool:
    """All but the first and the last eighth."""
    return place.count // 8 <= place.index < 7 * place.count // 8


def more_bits(place: Place) -> bool:
    """The first and the last eighth, and every third in between."""
    eighth = place.count // 8
    return (
        place.index < eighth
        or place.index >= 7 * place.count // 8
        or (place.index - eighth) % 3 == 2
    )


def wide_group(place: Place) -> bool:
    """Four query heads or more share each key and value head: these are small and matter."""
    return place.group >= 4


def importance(place: Place) -> bool:
    """An importance matrix is given."""
    return place.importance


def no_importance(place: Place) -> bool:
    """No importance matrix is given."""
    return not place.importance


def both(first: Condition, second: Condition) -> Condition:
    """Two conditions at once."""
    return lambda place: first(place) and second(place)


@dataclass(frozen=True)
class Mix:
    """One ftype: the base codec and what departs from it.

    Attributes
    ----------
    ftype : int
        The number in ``general.file_type``.
    base : str
        Codec of every matrix that no rule speaks of.
    embedding : str or None
        Codec of an embedding table that is not the output too; None for the base.
    output : str or None
        Codec of the output matrix, or of the embedding table that serves as one; None for the base.
    """

    ftype: int
    base: str
    embedding: str | None = None
    output: str | None = "q6_k"
    attn_qkv: Rules = ()
    attn_output: Rules = ()
    ffn_gate_up: Rules = ()
    ffn_down: Rules = ()


_EARLY_Q5_K: Final[Rules] = ((both(first_eighth, no_importance), "q5_k"),)
_LOW_QKV: Final[Rules] = ((wide_group, "q4_k"), (always, "q2_k"))
_LOW_QKV_3: Final[Rules] = ((wide_group, "q4_k"), (always, "iq3_s"))
_WIDE_Q4_K: Final[Rules] = ((wide_group, "q4_k"),)
_WIDE_Q5_K: Final[Rules] = ((wide_group, "q5_k"),)
_MORE_Q6_K: Final[Rules] = ((more_bits, "q6_k"),)


def _all(codec: str) -> Rules:
    return ((always, codec),)


#: llama-quantize as it is today, by ftype in lower case.
CURRENT: Final[Mapping[str, Mix]] = {
    "f32": Mix(0, "f32", output=None),
    "f16": Mix(1, "f16", output=None),
    "bf16": Mix(32, "bf16", output=None),
    # With importances the first ffn_down matrices of Q4_0 and Q5_0 are known to go wrong; not
    # without.
    "q4_0": Mix(2, "q4_0", ffn_down=((both(first_eighth, importance), "q4_1"),)),
    "q4_1": Mix(3, "q4_1"),
    "q5_0": Mix(8, "q5_0", ffn_down=((both(first_eighth, importance), "q5_1"),)),
    "q5_1": Mix(9, "q5_1"),
    "q8_0": Mix(7, "q8_0", output=None),
    "q2_k": Mix(
        10,
        "q2_k",
        attn_qkv=((wide_group, "q4_k"), (always, "q3_k")),
        attn_output=_all("q3_k"),
        ffn_down=_all("q3_k"),
    ),
    "q2_k_s": Mix(21, "q2_k", attn_qkv=_WIDE_Q4_K, ffn_down=((first_eighth, "q4_k"),)),
    "q3_k_s": Mix(11, "q3_k"),
    "q3_k_m": Mix(
        12,
        "q3_k",
        attn_qkv=((first_2, "q5_k"), (always, "q4_k")),
        attn_output=_all("q4_k"),
        ffn_down=((first_sixteenth, "q5_k"), (always, "q4_k")),
    ),
    "q3_k_l": Mix(
        13, "q3_k", attn_qkv=_all("q5_k"), attn_output=_all("q5_k"), ffn_down=_all("q5_k")
    ),
    "q4_k_s": Mix(14, "q4_k", attn_qkv=((first_4, "q5_k"),), ffn_down=((first_eighth, "q5_k"),)),
    "q4_k_m": Mix(15, "q4_k", attn_qkv=_MORE_Q6_K, ffn_down=_MORE_Q6_K),
    "q5_k_s": Mix(16, "q5_k"),
    "q5_k_m": Mix(17, "q5_k", attn_qkv=_MORE_Q6_K, ffn_down=_MORE_Q6_K),
    "q6_k": Mix(18, "q6_k"),
    "iq4_nl": Mix(25, "iq4_nl", attn_qkv=_WIDE_Q5_K, ffn_down=_EARLY_Q5_K),
    "iq4_xs": Mix(30, "iq4_xs", attn_qkv=_WIDE_Q5_K, ffn_down=_EARLY_Q5_K),
    "iq3_s": Mix(26, "iq3_s", attn_qkv=_WIDE_Q4_K),
    "iq3_m": Mix(
        27,
        "iq3_s",
        attn_qkv=_all("q4_k"),
        attn_output=_all("q4_k"),
        ffn_down=((first_eighth, "q4_k"),),
    ),
    "iq3_xs": Mix(22, "iq3_s", attn_qkv=_WIDE_Q4_K, ffn_gate_up=((middle, "iq3_xxs"),)),
    "iq3_xxs": Mix(
        23,
        "iq3_xxs",
        embedding="iq3_s",
        output="q5_k",
        attn_qkv=((wide_group, "q4_k"), (no_importance, "iq3_s")),
        attn_output=_all("iq3_s"),
        ffn_down=((both(first_eighth, no_importance), "q4_k"), (no_importance, "q3_k")),
    ),
    "iq2_xxs": Mix(
        19,
        "iq2_xxs",
        embedding="q2_k",
        output="q5_k",
        attn_qkv=_LOW_QKV,
        ffn_down=((first_eighth, "q2_k"),),
    ),
    "iq2_xs": Mix(
        20,
        "iq2_xs",
        embedding="q2_k",
        output="q5_k",
        attn_qkv=_LOW_QKV,
        ffn_down=((first_eighth, "q2_k"),),
    ),
    "iq2_s": Mix(
        28,
        "iq2_xs",
        embedding="iq3_s",
        output="q5_k",
        attn_qkv=_LOW_QKV_3,
        attn_output=_all("iq3_s"),
        ffn_down=((first_eighth, "iq3_s"),),
    ),
    "iq2_m": Mix(
        29,
        "iq2_s",
        embedding="iq3_s",
        output="q5_k",
        attn_qkv=_LOW_QKV_3,
        attn_output=_all("iq3_s"),
        ffn_down=((first_eighth, "iq3_s"),),
    ),
    "iq1_s": Mix(
        24,
        "iq1_s",
        embedding="q2_k",
        output="q5_k",
        attn_qkv=_LOW_QKV,
        attn_output=_all("iq2_xxs"),
        ffn_down=((first_eighth, "q2_k"),),
    ),
    "iq1_m": Mix(
        31,
        "iq1_m",
        embedding="q2_k",
        output="q5_k",
        attn_qkv=_LOW_QKV,
        attn_output=_all("iq2_xxs"),
        ffn_down=((first_eighth, "q2_k"),),
    ),
    "tq1_0": Mix(36, "tq1_0", embedding="q4_k"),
    "tq2_0": Mix(37, "tq2_0", embedding="q4_k"),
    "q1_0": Mix(40, "q1_0"),
    "q2_0": Mix(41, "q2_0", embedding="q4_k"),
    # Only experts become MXFP4; a dense model has none, and all its matrices are Q8_0.
    "mxfp4_moe": Mix(38, "q8_0", output=None),
}

# llama-quantize had other rules for a fused attn_qkv until it began to treat it as attn_v (in
# 2025); the published GGUF files of Phi are made by these.
_PUBLISHED_QKV: Final[Mapping[str, Rules]] = {
    "q3_k_m": _all("q4_k"),
    "q3_k_l": _all("q4_k"),
    "iq3_m": _all("q4_k"),
    "q4_k_m": _all("q5_k"),
    "q5_k_m": _all("q6_k"),
}

#: llama-quantize as the published Phi files were made.
PUBLISHED: Final[Mapping[str, Mix]] = {
    name: replace(mix, attn_qkv=_PUBLISHED_QKV.get(name, ())) for name, mix in CURRENT.items()
}

MixName = Literal["current", "published"]

#: The tables by the name that ``--mix`` takes.
TABLES: Final[Mapping[str, Mapping[str, Mix]]] = {"current": CURRENT, "published": PUBLISHED}

#: Short names that llama-quantize has for some ftypes.
ALIASES: Final[Mapping[str, str]] = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
