"""The layouts of GPTQ and AWQ: which matrices fit, and what config.json says of them."""

from __future__ import annotations

from typing import Final

from phiquant.architectures.spec import TensorRole
from phiquant.errors import UsageError

#: Presets of these layouts. Neither method is carried out: weights are rounded to the nearest.
LAYOUTS: Final = ("gptq", "awq")

#: Bits of GPTQ's codes.
BITS: Final = (2, 3, 4, 8)


def layout_of(preset: str, *, symmetric: bool, version: int | None = None) -> str:
    """The codec's layout: ``gptq``, ``gptq_v1`` or ``awq``.

    The first version stores zero points less one, which every loader knows; but a zero point of 0
    runs over in it, and loaders disagree on what that means. So it is for symmetric codes only.

    Raises
    ------
    phiquant.UsageError
        The first version with zero points.
    """
    if preset == "awq":
        return "awq"
    if version == 1 and not symmetric:
        raise UsageError(
            "GPTQ's first version cannot hold zero points of 0",
            remedy="Choose sym, or format=v2.",
        )
    return "gptq_v1" if version == 1 or (symmetric and version is None) else "gptq"


def settings(layout: str, bits: int, group: int, *, symmetric: bool) -> dict[str, object]:
    """``config.json``'s quantization_config; a group of 0 is a whole row."""
    length = group or -1
    if layout == "awq":
        return {
            "quant_method": "awq",
            "bits": bits,
            "group_size": length,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ["lm_head"],
        }
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": length,
        "desc_act": False,
        "sym": symmetric,
        "lm_head": False,
        "checkpoint_format": "gptq" if layout == "gptq_v1" else "gptq_v2",
        "pack_dtype": "int32",
    }


def check_fit(tensor: TensorRole, bits: int) -> None:
    """Words of 32 bits hold codes of whole rows, and zero points of whole columns.

    Raises
    ------
    phiquant.UsageError
        They don't.
    """
    rows, columns = tensor.shape
    if columns % 32 or rows * bits % 32:
        raise UsageError(
            f"its {rows} rows of {columns} do not fill words of 32 bits",
            tensor=tensor.source,
            remedy="Choose hf:w4a16, which takes it.",
        )
