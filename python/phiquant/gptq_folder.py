"""Folders in the layouts of GPTQ and AWQ, opened as checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

import numpy as np

from phiquant import safetensors
from phiquant.architectures import read_config
from phiquant.checkpoint import Checkpoint, PlaneEntry, TensorEntry
from phiquant.codecs import find_codec
from phiquant.errors import FormatError, PhiquantError, UnsupportedError

_PARTS: Final = re.compile(r"\.(qweight|qzeros|scales|g_idx)$")

_SCALES: Final = {"f16": "", "bf16": ",scales=bf16", "f32": ",scales=f32"}

# Where tools have left their settings, the oldest ones beside config.json only.
_SETTINGS: Final = ("config.json", "quantize_config.json", "quant_config.json")


def settings_of(path: Path) -> Mapping[str, object] | None:
    """What a folder says of GPTQ or AWQ; None where it says nothing."""
    for name in _SETTINGS:
        file = path / name
        if not file.is_file():
            continue
        try:
            found: object = read_config(file)
        except PhiquantError:
            continue
        if name == "config.json" and isinstance(found, dict):
            found = found.get("quantization_config")
        if not isinstance(found, dict):
            continue
        if name == "config.json" or "quant_method" in found:
            return found if found.get("quant_method") in ("gptq", "awq") else None
        # Before there was the key, each tool had a file of its own.
        method = "gptq" if name == "quantize_config.json" else "awq"
        if {"bits", "w_bit"} & set(found):
            return {"quant_method": method, **found}
    return None


def open_folder(path: Path, *, name: str | None = None) -> Checkpoint:
    """Open a folder whose matrices are laid out by GPTQ or AWQ.

    Headers are read, and the matrices' zero points and groups of columns.

    Raises
    ------
    phiquant.FormatError
        Files are damaged, or a matrix's tensors contradict each other.
    phiquant.UnsupportedError
        Columns in another order (act-order), or a layout that phiquant does not decode.
    phiquant.IoError
        A file is missing or cannot be read.
    """
    settings = settings_of(path) or {}
    method, layout = _layout(settings, path)
    opened = safetensors.open_folder(path, name=name)
    reader = _Reader(opened, layout)
    entries: dict[str, TensorEntry] = {}
    for entry in opened.entries.values():
        part = _PARTS.search(entry.name)
        if part is None:
            entries[entry.name] = entry
        elif part[1] == "qweight":
            matrix = reader.matrix(entry, entry.name[: part.start()])
            entries[matrix.name] = matrix
        elif f"{entry.name[: part.start()]}.qweight" not in opened.entries:
            raise FormatError(
                "belongs to a matrix without codes",
                file=opened.files[entry.file].path,
                tensor=entry.name,
                remedy="The folder is incomplete: fetch it again.",
            )
    check_quantized(entries.values(), path)
    return Checkpoint(method, path, opened.files, entries, opened.metadata, name=opened.name)


def check_quantized(entries: Iterable[TensorEntry], path: Path) -> None:
    """Refuse a folder whose config speaks of quantized weights where there are none.

    Raises
    ------
    phiquant.UnsupportedError
        No matrix has planes.
    """
    if not any(entry.planes for entry in entries):
        raise UnsupportedError(
            "says in its config that weights are quantized, and holds none that phiquant knows",
            file=path,
            remedy="Convert the original model instead, or fetch the folder again.",
        )


def _layout(settings: Mapping[str, object], path: Path) -> tuple[str, str]:
    """The method, and the codecs' layout."""
    if settings.get("quant_method") == "awq":
        version = str(settings.get("version", settings.get("format", "gemm"))).lower()
        if version == "gemm":
            return "awq", "awq"
        kind = f"AWQ's layout '{version[:40]}'"
    else:
        version = str(settings.get("checkpoint_format") or settings.get("format") or "gptq").lower()
        if version in ("gptq", "gptq_v2"):
            return "gptq", "gptq_v1" if version == "gptq" else "gptq"
        kind = f"GPTQ's layout '{version[:40]}'"
    raise UnsupportedError(
        f"holds weights in {kind}, which phiquant does not decode",
        file=path,
        remedy="There are gptq, gptq_v2, and AWQ's gemm.",
    )


@dataclass(frozen=True)
class _Reader:
    """Matrices of an open folder, from the shapes of their tensors."""

    opened: Checkpoint
    layout: str

    def matrix(self, entry: TensorEntry, module: str) -> TensorEntry:
        scales, zeros = self._part(entry, module, "scales"), self._part(entry, module, "qzeros")
        shapes = [one.shape for one in (entry, scales, zeros)]
        if any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
            self._refuse_shapes(entry, shapes)
        groups, rows = scales.shape
        bits = zeros.shape[1] * 32 // rows
        codes = entry.shape[0] * 32
        columns = entry.shape[0] if self.layout == "awq" else codes // max(1, bits)
        wanted = (columns, rows * bits // 32)
        if self.layout != "awq":
            wanted = (columns * bits // 32, rows)
        if (
            {entry.type, zeros.type} != {"i32"}
            or scales.type not in _SCALES
            or bits * rows != zeros.shape[1] * 32
            or zeros.shape[0] != groups
            or entry.shape != wanted
            or columns % groups
        ):
            self._refuse_shapes(entry, shapes)
        self._check_order(module, columns, columns // groups)
        sign = "sym" if self._is_symmetric(zeros, bits) else "asym"
        length = "channel" if groups == 1 else f"g{columns // groups}"
        name = f"int{bits}_{sign}_{length},rule=ct{_SCALES[scales.type]},layout={self.layout}"
        found = (entry, scales, zeros)
        places = tuple(PlaneEntry(one.file, one.offset, one.nbytes) for one in found)
        try:
            codec = find_codec(name)
            sizes = [plane.nbytes for plane in codec.planes(rows, columns)]
        except PhiquantError:
            raise UnsupportedError(
                f"is held as {name}, which phiquant does not decode",
                file=self.opened.files[entry.file].path,
                tensor=entry.name,
            ) from None
        if sizes != [place.nbytes for place in places]:
            self._refuse_shapes(entry, shapes)
        return replace(
            entry,
            name=f"{module}.weight",
            type=codec.name,
            shape=(rows, columns),
            nbytes=sum(sizes),
            planes=places,
        )

    def _part(self, entry: TensorEntry, module: str, part: str) -> TensorEntry:
        found = self.opened.entries.get(f"{module}.{part}")
        if found is None:
            raise FormatError(
                f"is quantized, and has no {part} beside it",
                file=self.opened.files[entry.file].path,
                tensor=entry.name,
                remedy="The folder is incomplete: fetch it again.",
            )
        return found

    def _refuse_shapes(self, entry: TensorEntry, shapes: list[tuple[int, ...]]) -> NoReturn:
        listed = ", ".join(str(list(shape)) for shape in shapes)
        raise FormatError(
            f"has codes, scales and zero points of the shapes {listed}, or of types, that no "
            f"matrix in the layout {self.layout} has",
            file=self.opened.files[entry.file].path,
            tensor=entry.name,
            remedy="The folder is damaged, or its config.json is another one's: fetch it again.",
        )

    def _check_order(self, module: str, columns: int, group: int) -> None:
        """Groups of columns in another order than the columns' own are not for any codec."""
        index = self.opened.entries.get(f"{module}.g_idx")
        if index is None:
            return
        file = self.opened.files[index.file]
        if index.type != "i32" or index.shape != (columns,):
            raise FormatError(
                f"is of {index.type} and the shape {list(index.shape)}, for {columns} columns",
                file=file.path,
                tensor=index.name,
            )
        found = np.frombuffer(file.read(index.offset, index.nbytes), "<i4")
        # Some tools leave it at zeros where nothing was ordered.
        if not np.array_equal(found, np.arange(columns) // group) and found.any():
            raise UnsupportedError(
                "orders columns by their activations (act-order), which phiquant does not decode",
                file=file.path,
                tensor=index.name,
                remedy="Choose a checkpoint that was made with desc_act=false.",
            )

    def _is_symmetric(self, zeros: TensorEntry, bits: int) -> bool:
        """Whether all zero points are the middle code, whatever the settings say."""
        if bits not in (2, 3, 4, 8):
            return False
        middle = (1 << (bits - 1)) - (self.layout == "gptq_v1")
        stream = sum(middle << bits * k for k in range(32))
        words = np.frombuffer(stream.to_bytes(bits * 4, "little"), "<u4")
        file = self.opened.files[zeros.file]
        found = np.frombuffer(file.read(zeros.offset, zeros.nbytes), "<u4").reshape(zeros.shape)
        return bool((found == np.resize(words, zeros.shape[1])).all())
