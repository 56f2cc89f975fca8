"""The OpenVINO target's presets and options, and how each tensor is stored by them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from phiquant.architectures import ModelSpec
from phiquant.architectures.spec import TensorRole
from phiquant.errors import UsageError
from phiquant.targets.names import Target
from phiquant.targets.openvino_weights import Encoding

GROUPS: Final = (16, 32, 64, 128, 256)
_NUMBERS = Encoding(32)
_BACKUP = Encoding(8, symmetric=False)
_OUTER = ("embedding", "output")
_MX = Encoding(8, group=32, levels="mxfp8")
# The width of the models that optimum-intel's defaults name: Phi-3-mini, Phi-3.5-mini, Phi-4-mini;
# and what tells Phi-4-reasoning, which they name, from Phi-4, which they don't.
_MINI = 3072
_REASONING = (5120, 32768)
_GROUPED = ("int4", "int4_sym", "int4_asym", "nf4")


@dataclass(frozen=True)
class Settings:
    """A target's choices.

    Attributes
    ----------
    matrix : Encoding
        Of the layers' matrices.
    outer : Encoding
        Of the embedding table and the output matrix.
    notes : tuple of str
        What the user should know about the choice.
    overrides : mapping of str to Encoding
        Of single tensors, by source name.
    ratio : float
        Part of the layers' weights that may be stored as ``matrix``; the others are stored as the
        embedding is.
    awq : bool
        Whether columns of down projections of 4 bits are scaled by NNCF's AWQ without data.
    """

    matrix: Encoding
    outer: Encoding
    notes: tuple[str, ...] = ()
    overrides: Mapping[str, Encoding] = field(default_factory=dict)
    ratio: float = 1.0
    awq: bool = False

    def scaled(self, spec: ModelSpec) -> list[TensorRole]:
        """The matrices whose columns AWQ scales: NNCF finds no others behind a Swish."""
        downs = [tensor for tensor in spec.tensors if tensor.role == "ffn_down"]
        return [tensor for tensor in downs if self.awq and self.encoding(tensor).bits == 4]

    def encoding(self, tensor: TensorRole) -> Encoding:
        """How a tensor is stored; norms as float32, as NNCF leaves them."""
        if tensor.source in self.overrides:
            return self.overrides[tensor.source]
        if len(tensor.shape) < 2:
            return _NUMBERS
        return self.outer if tensor.role in _OUTER else self.matrix


def settings_of(
    target: Target, spec: ModelSpec, overrides: Iterable[tuple[str, str]] = ()
) -> Settings:
    """Read a target's preset and options.

    Parameters
    ----------
    overrides : iterable of (glob, name)
        On source tensor names; the first match decides. Names are ``f16 f32``,
        ``int{4,8}_{sym,asym}_{g16,g32,g64,g128,g256,channel}``,
        ``nf4_{g16,g32,g64,g128,g256,channel}``, ``mxfp4`` and ``mxfp8``.

    Raises
    ------
    phiquant.UsageError
        An option that there is not, or that the preset does not have, a group that rows are no
        multiple of, a glob that matches nothing.
    """
    return replace(_settings(target, spec), overrides=_overrides(spec, overrides))


def _overrides(spec: ModelSpec, overrides: Iterable[tuple[str, str]]) -> dict[str, Encoding]:
    found: dict[str, Encoding] = {}
    for glob, name in overrides:
        encoding = _encoding(name)
        names = [t for t in spec.tensors if fnmatch.fnmatchcase(t.source, glob)]
        if not names:
            raise UsageError(f"'{glob}' matches no tensor of the model")
        for tensor in names:
            if tensor.source in found:
                continue
            if encoding.bits < 16 and len(tensor.shape) < 2:
                raise UsageError(f"{name} is for matrices", tensor=tensor.source)
            if encoding.group is not None and tensor.shape[1] % encoding.group:
                raise UsageError(
                    f"has rows of {tensor.shape[1]}, no multiple of {name}'s group",
                    tensor=tensor.source,
                )
            found[tensor.source] = encoding
    return found


def _encoding(name: str) -> Encoding:
    if name in ("f16", "f32"):
        return Encoding(int(name[1:]))
    if name in ("mxfp4", "mxfp8"):
        return Encoding(int(name[-1]), group=32, levels=name)
    match = re.fullmatch(r"(int([48])_(sym|asym)|nf4)_(?:g(16|32|64|128|256)|channel)", name)
    if not match:
        raise UsageError(
            f"OpenVINO targets have no codec '{name}'",
            remedy="There are f16, f32, int{4,8}_{sym,asym}_{g16,g32,g64,g128,g256,channel}, "
            "nf4_{g16,...,channel}, mxfp4 and mxfp8.",
        )
    group = None if match[4] is None else int(match[4])
    if match[1] == "nf4":
        return Encoding(4, group=group, levels="nf4")
    return Encoding(int(match[2]), match[3] == "sym", group)


def _settings(target: Target, spec: ModelSpec) -> Settings:
    group, ratio = None, 1.0
    awq: bool | None = None
    for key, value in target.options:
        if key in ("awq", "noawq") and value is True:
            if awq is not None:
                raise UsageError(f"'{target}': awq or noawq", remedy="Choose one of them.")
            awq = key == "awq"
        elif key == "ratio":
            ratio = _ratio(target, value)
        elif key != "group":
            raise UsageError(
                f"'{target}': OpenVINO targets have no option '{key}'",
                remedy="There are group=16|32|64|128|256|channel, ratio=0.0 to 1.0, awq and noawq.",
            )
        else:
            group = str(value)
        if target.preset not in _GROUPED:
            raise UsageError(
                f"'{target}': '{key}' is for int4 and nf4; {target.preset} has no groups to choose",
                remedy=f"Leave it out, or choose {', '.join(_GROUPED)}.",
            )
    settings = _chosen(target, spec, group)
    return replace(settings, ratio=ratio, awq=settings.awq if awq is None else awq)


def _chosen(target: Target, spec: ModelSpec, group: str | None) -> Settings:
    """What preset and group make, and whether the default has AWQ."""
    if target.preset == "fp16":
        return Settings(Encoding(16), Encoding(16))
    if target.preset in ("int8", "int8_sym"):
        encoding = Encoding(8, symmetric=target.preset == "int8_sym")
        return Settings(encoding, encoding)
    if target.preset == "mxfp4":
        unfit = [t for t in spec.tensors if len(t.shape) == 2 and t.shape[1] % 32]
        if unfit:
            raise UsageError(
                f"has rows of {unfit[0].shape[1]}, no multiple of mxfp4's groups of 32",
                tensor=unfit[0].source,
                remedy="Take int4_sym,group=channel.",
            )
        return Settings(Encoding(4, group=32, levels="mxfp4"), _MX)
    if group is None:
        return _default_group(target, spec)
    matrix = _of_four(target)
    if group == "channel":
        return Settings(matrix, _BACKUP)
    if not group.isascii() or not group.isdigit() or int(group) not in GROUPS:
        raise UsageError(
            f"'{target}': '{group}' is no group",
            remedy=f"There are {', '.join(map(str, GROUPS))} and channel (a whole row).",
        )
    wanted = int(group)
    unfit = [tensor for tensor in _matrices(spec) if tensor.shape[1] % wanted]
    if unfit:
        fits = [str(size) for size in GROUPS if _fits(spec, size)]
        raise UsageError(
            f"has rows of {unfit[0].shape[1]}, no multiple of the group {wanted}",
            tensor=unfit[0].source,
            remedy=f"Take group={' or '.join([*fits, 'channel'])}.",
        )
    return Settings(replace(matrix, group=wanted), _BACKUP)


def _of_four(target: Target) -> Encoding:
    """The preset's 4 bits, a scale a row."""
    if target.preset == "nf4":
        return Encoding(4, levels="nf4")
    return Encoding(4, symmetric=target.preset == "int4_sym")


def _ratio(target: Target, value: str | bool) -> float:
    if isinstance(value, str) and re.fullmatch(r"[01]|[01]?\.[0-9]{1,9}", value):
        ratio = float(value)
        if ratio <= 1.0:
            return ratio
    raise UsageError(
        f"'{target}': ratio={value} is no part of the weights",
        remedy="Take a number from 0 to 1, as ratio=0.8.",
    )


def mixed(settings: Settings, spec: ModelSpec, errors: Mapping[str, float]) -> Settings:
    """Leave matrices at 8 bits until no more than ``ratio`` of the layers' weights have 4.

    Those that lose most at 8 bits get 4 bits first: 8 bits would be wasted on them. So NNCF decides
    without data (``weight_quantization_error``, mixed_precision.py).

    Parameters
    ----------
    errors : mapping of str to float
        Of each of the layers' matrices, by source name; see :mod:`phiquant.measure.rounding`.
    """
    matrices = _matrices(spec)
    whole = sum(tensor.elements for tensor in matrices)
    overrides = dict(settings.overrides)
    taken, full = 0, False
    for tensor in sorted(matrices, key=lambda tensor: -errors[tensor.source]):
        full = full or (taken + tensor.elements) / whole >= settings.ratio
        if full:
            overrides.setdefault(tensor.source, settings.outer)
        else:
            taken += tensor.elements
    note = f"{taken / whole:.0%} of the layers' weights have 4 bits, the others 8"
    return replace(settings, overrides=overrides, notes=(*settings.notes, note))


def _default_group(target: Target, spec: ModelSpec) -> Settings:
    """What is not asked for: NNCF's group, or optimum-intel's group and AWQ for the model."""
    wanted, awq, notes = 128, False, []
    if target.preset == "int4" and spec.hidden_size == _MINI:
        wanted = 64
        # Phi-3.5-mini and Phi-4-mini, which have longrope; Phi-3-mini-4k has not.
        awq = spec.rope.scaling is not None
        if not awq:
            notes.append(
                "optimum-intel's default for this model also estimates scales with text, which "
                "this version does not: its scales are NNCF's without data, on the same grid"
            )
    elif target.preset == "int4" and (spec.hidden_size, spec.context) == _REASONING:
        wanted = 64
    size = next((size for size in (wanted, 64, 32, 16) if _fits(spec, size)), None)
    if size != wanted:
        instead = "one scale a row" if size is None else f"groups of {size}"
        notes.append(f"some rows are no multiple of {wanted}: {instead} instead")
    matrix = replace(_of_four(target), group=size)
    return Settings(matrix, _BACKUP, tuple(notes), awq=awq)


def _fits(spec: ModelSpec, size: int) -> bool:
    return not any(tensor.shape[1] % size for tensor in _matrices(spec))


def _matrices(spec: ModelSpec) -> list[TensorRole]:
    return [t for t in spec.tensors if len(t.shape) == 2 and t.role not in _OUTER]
