"""What was made on this machine: records of conversions, what changed since, where it went."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phiquant.registry.records import Model


def models(*, replaced: bool = False) -> list[Model]:
    """What was made on this machine, the newest first.

    Parameters
    ----------
    replaced : bool
        Also results whose path another one has taken since.

    Returns
    -------
    list of Model
        Each with ``path``, ``target``, ``files``, ``facts`` (source, recipe, codecs, times) and
        ``verdicts``.

    Raises
    ------
    phiquant.FormatError, phiquant.UnsupportedError, phiquant.IoError
        The registry is damaged, of a newer version, or cannot be read.
    """
    from phiquant.registry.store import Registry

    return Registry().models(replaced=replaced)
