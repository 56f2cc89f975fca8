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
# The width of the models that optimum-intel's defaults name: Phi-3-mini, Phi-3.5-mini, Phi-4-mini.
_MINI = 3072


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
    """

    matrix: Encoding
    outer: Encoding
    notes: tuple[str, ...] = ()
    overrides: Mapping[str, Encoding] = field(default_factory=dict)
    ratio: float = 1.0

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
        ``int{4,8}_{sym,asym}_{g16,g32,g64,g128,g256,channel}``.

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
    match = re.fullmatch(r"int([48])_(sym|asym)_(?:g(16|32|64|128|256)|channel)", name)
    if not match:
        raise UsageError(
            f"OpenVINO targets have no codec '{name}'",
            remedy="There are f16, f32 and int{4,8}_{sym,asym}_{g16,g32,g64,g128,g256,channel}.",
        )
    group = None if match[3] is None else int(match[3])
    return Encoding(int(match[1]), match[2] == "sym", group)


def _settings(target: Target, spec: ModelSpec) -> Settings:
    group, ratio = None, 1.0
    for key, value in target.options:
        if key == "ratio":
            ratio = _ratio(target, value)
        elif key != "group":
            raise UsageError(
                f"'{target}': OpenVINO targets have no option '{key}'",
                remedy="There are group=16|32|64|128|256|channel and ratio=0.0 to 1.0.",
            )
        else:
            group = str(value)
        if not target.preset.startswith("int4"):
            raise UsageError(
                f"'{target}': '{key}' is for int4, and {target.preset} has no groups",
                remedy="Leave it out, or choose int4, int4_sym or int4_asym.",
            )
    if target.preset == "fp16":
        return Settings(Encoding(16), Encoding(16))
    if target.preset in ("int8", "int8_sym"):
        encoding = Encoding(8, symmetric=target.preset == "int8_sym")
        return Settings(encoding, encoding)
    if group is None:
        return replace(_default_group(target, spec), ratio=ratio)
    symmetric = target.preset == "int4_sym"
    if group == "channel":
        return Settings(Encoding(4, symmetric), _BACKUP, ratio=ratio)
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
    return Settings(Encoding(4, symmetric, wanted), _BACKUP, ratio=ratio)


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
    """The group where none is asked for: NNCF's, or optimum-intel's for the model."""
    wanted, notes = 128, []
    if target.preset == "int4" and spec.hidden_size == _MINI:
        wanted = 64
        notes.append(
            "optimum-intel's default for this model also moves scales between columns (AWQ, or "
            "scale estimation with text), which this version does not"
        )
    symmetric = target.preset == "int4_sym"
    size = next((size for size in (wanted, 64, 32, 16) if _fits(spec, size)), None)
    if size != wanted:
        instead = "one scale a row" if size is None else f"groups of {size}"
        notes.append(f"some rows are no multiple of {wanted}: {instead} instead")
    return Settings(Encoding(4, symmetric, size), _BACKUP, tuple(notes))


def _fits(spec: ModelSpec, size: int) -> bool:
    return not any(tensor.shape[1] % size for tensor in _matrices(spec))


def _matrices(spec: ModelSpec) -> list[TensorRole]:
    return [t for t in spec.tensors if len(t.shape) == 2 and t.role not in _OUTER]
