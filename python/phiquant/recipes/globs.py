"""Which override holds for which tensor: globs on source names, of which the first one decides."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import TypeVar

from phiquant.errors import UsageError

T = TypeVar("T")


def by_name(
    names: Iterable[str], overrides: Iterable[tuple[str, T]], *, kind: str
) -> Mapping[str, T]:
    """What overrides say of each name that one of them matches.

    Parameters
    ----------
    names : iterable of str
        Source names of the tensors that may be stored otherwise.
    overrides : iterable of (glob, T)
    kind : str
        What the names are, as errors say it: ``matrix``.

    Raises
    ------
    phiquant.UsageError
        A glob matches none of the names.
    """
    listed = list(names)
    found: dict[str, T] = {}
    for glob, wanted in overrides:
        matches = [name for name in listed if fnmatch.fnmatchcase(name, glob)]
        if not matches:
            raise UsageError(
                f"'{glob}' matches no {kind} of the model",
                remedy="Globs are on source names, as '*.down_proj.weight'.",
            )
        for name in matches:
            found.setdefault(name, wanted)
    return found
