"""The codec table, as C++ holds it, and the names that GGUF gives to types of its own."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache

from phiquant import _core
from phiquant.errors import UsageError


@dataclass(frozen=True)
class Affine:
    """Codes of some bits times a scale a group, from a zero point or a bias.

    Attributes
    ----------
    bits : int
        2, 3, 4, 5, 6 or 8.
    group : int
        Values that share a scale, along a row; 0: the whole row.
    symmetric : bool
        Whether the zero point is always ``2 ** (bits - 1)``.
    scale : str
        The scales' dtype: ``float32``, ``float16`` or ``bfloat16``.
    """

    bits: int
    group: int
    symmetric: bool
    scale: str


@dataclass(frozen=True)
class Plane:
    """One plane of an encoded matrix.

    Attributes
    ----------
    content : str
        ``codes``, ``scales``, ``zero_points`` or ``biases``.
    bits : int
        Bits of an element.
    row_elements : int
        Elements of a row: values (groups filled up), or groups.
    nbytes : int
    """

    content: str
    bits: int
    row_elements: int
    nbytes: int


@dataclass(frozen=True)
class Codec:
    """One way to hold weights.

    Attributes
    ----------
    name : str
        As users write it: ``q4_k``.
    grid : str
        ``float``, ``scale`` (codes times a scale), ``scale and minimum``, ``levels`` (codes name
        uneven levels), ``lattice`` (codes name several values at once); empty for types of GGUF
        that this version holds, but neither encodes nor decodes.
    block_values, sub_block_values : int
        Weights a block, and weights that share a scale.
    block_bytes : int
    ggml_type : int
        The type's id in GGUF files; -1 where it has none.
    bits_per_weight : float
    needs_importance : bool
        Whether it cannot be encoded without a weight for each column.
    has_best : bool
        Whether ``quality="best"`` is to be had.
    rule : str
        Whose tool's bits it makes: ``ggml``, ``ort``, ``qdq``, ``nncf``, ``mlx`` or ``ct``; or
        ``portable``, phiquant's own, whose weights are the same in every layout.
    affine : Affine or None
        The grid of an affine codec, such as ``int4_sym_g32``.
    transposed : bool
        Whether the matrix is written by columns.
    """

    name: str
    grid: str
    block_values: int
    sub_block_values: int
    block_bytes: int
    ggml_type: int
    bits_per_weight: float
    needs_importance: bool = False
    has_best: bool = False
    rule: str = "ggml"
    affine: Affine | None = None
    transposed: bool = False

    @property
    def has_biases(self) -> bool:
        """Whether groups have biases, which are values, instead of zero points."""
        return self.rule == "mlx" or ",layout=mlx" in self.name

    @property
    def has_planes(self) -> bool:
        """Whether it is written as planes (codes, scales, ...) instead of blocks."""
        return self.affine is not None or self.transposed

    def planes(self, rows: int, columns: int) -> tuple[Plane, ...]:
        """The planes of a matrix; of a codec of blocks there are none.

        Raises
        ------
        phiquant.ShapeError
            The codec cannot hold such a matrix.
        """
        if not self.has_planes:
            return ()
        return tuple(Plane(*row) for row in _core.planes(self.name, rows, columns))

    def bytes_of(self, rows: int, columns: int) -> int:
        """Bytes of ``rows`` rows of ``columns`` weights.

        Raises
        ------
        phiquant.ShapeError
            ``columns`` is no multiple of ``block_values``.
        """
        return _core.block_bytes(self.name, rows, columns)


@lru_cache(maxsize=1)
def all_codecs() -> tuple[Codec, ...]:
    """Every codec that can be encoded and decoded."""
    return tuple(Codec(**row) for row in _core.codecs())


def find_codec(name: str) -> Codec:
    """A codec by its name, in any case.

    Raises
    ------
    phiquant.UsageError
        There is none; the message names the nearest ones.
    """
    wanted = str(name).strip().lower()
    names = {codec.name: codec for codec in all_codecs()}
    if wanted in names:
        return names[wanted]
    if made := _made_codec(wanted):
        return made
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    remedy = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        f"there is no codec '{name}'", remedy=f"{remedy}`phiquant formats` lists them all."
    )


@lru_cache(maxsize=256)
def _made_codec(name: str) -> Codec | None:
    """An affine codec, or a float written by columns; its name has no options that are defaults."""
    row = _core.made_codec(name)
    if row is None:
        return None
    affine = None
    keys = ("bits", "group", "symmetric", "scale")
    if "bits" in row:
        affine = Affine(*(row.pop(key) for key in keys))
        row.pop("is_built")
    return Codec(**row, affine=affine)


def affine_name(
    name: str, *, rule: str | None = None, scales: str | None = None, layout: str | None = None
) -> str:
    """The full name of an affine codec: ``int4_sym_g32,rule=nncf,scales=f16``.

    Parameters
    ----------
    name : str
        ``int{2,3,4,5,6,8}_{sym,asym}_{g16,g32,g64,g128,g256,channel}``.
    rule : "ort", "qdq", "nncf", "mlx", "ct" or "portable", optional
        Whose tool's bits; ``ort`` by default.
    scales : "f32", "f16" or "bf16", optional
        By default what the rule's tool stores: f32 (ort, qdq), f16 (nncf), bf16 (mlx, ct), f16
        (portable); f16 in the layouts of GPTQ and AWQ.
    layout : str, optional
        ``rows``, ``openvino``, ``mlx``, ``packed``, ``bytes``, ``transposed``, ``gptq``,
        ``gptq_v1`` or ``awq``; by default that of the rule's own format.
    """
    options = (("rule", rule), ("scales", scales), ("layout", layout))
    return ",".join([name, *(f"{key}={value}" for key, value in options if value is not None)])


def stored_codec(name: str) -> Codec:
    """The codec of a tensor in a file: one of ours, or the bare layout of another type of ggml.

    Raises
    ------
    phiquant.UsageError
        ggml has no such type either.
    """
    if name not in {codec.name for codec in all_codecs()}:
        for number, known, values, size in _core.ggml_types():
            if known == name:
                return Codec(name, "", values, values, size, number, 8 * size / values)
    return find_codec(name)


def codec_of_ggml_type(ggml_type: int) -> Codec | None:
    """The codec of a GGUF tensor type, or None when phiquant does not decode it."""
    return next((codec for codec in all_codecs() if codec.ggml_type == ggml_type), None)


#: Names of all tensor types of GGUF (ggml.h), for listing files that hold others than our codecs.
GGML_TYPE_NAMES: dict[int, str] = dict(
    enumerate(["f32", "f16", "q4_0", "q4_1", "q4_2", "q4_3", "q5_0", "q5_1", "q8_0", "q8_1"])
) | {
    10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k", 16: "iq2_xxs",
    17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s",
    23: "iq4_xs", 24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 29: "iq1_m", 30: "bf16",
    34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4", 41: "q1_0", 42: "q2_0",
}  # fmt: skip
