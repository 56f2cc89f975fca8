"""Which runtimes there are: every module of this package that has a ``RUNTIME``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from phiquant.errors import IoError, UnsupportedError
from phiquant.runtimes.protocol import Runtime

_PACKAGE = __name__.rpartition(".")[0]


@cache
def runtimes() -> tuple[Runtime, ...]:
    """All runtimes, installed or not, by the names of their modules."""
    found = []
    package = importlib.import_module(_PACKAGE)
    for module in sorted(one.name for one in pkgutil.iter_modules(package.__path__)):
        runtime = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), "RUNTIME", None)
        if isinstance(runtime, Runtime):
            found.append(runtime)
    return tuple(found)


def runtime_of(path: Path) -> Runtime:
    """The runtime that runs an output.

    Raises
    ------
    phiquant.IoError
        There is nothing at the path.
    phiquant.UnsupportedError
        No runtime recognizes it.
    """
    try:
        path.stat()
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise IoError(f"cannot be opened: {cause}", file=path) from error
    for runtime in runtimes():
        if runtime.recognizes(path):
            return runtime
    known = ", ".join(f"{one.runs} ({one.name})" for one in runtimes())
    raise UnsupportedError(
        f"is no output that a runtime here runs: {known}",
        file=path,
        remedy="'phiquant convert' makes such outputs.",
    )
