"""A target that is a folder: files of tensors, and small texts beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from phiquant.plan import PlannedFile, PlannedTarget
from phiquant.targets.names import Target, default_output


def folder_target(
    target: Target,
    source: str,
    files: Iterable[PlannedFile],
    texts: Mapping[str, bytes],
    *,
    notes: tuple[str, ...] = (),
    check: Callable[[Path, PlannedFile], None],
    hint: Callable[[Path], str],
) -> PlannedTarget:
    """Plan a folder.

    Parameters
    ----------
    target : Target
    source : str
        The model's name.
    files : iterable of PlannedFile
        In the order in which they are written.
    texts : mapping of str to bytes
        Small files by name, written after them.
    notes, check, hint :
        As :class:`PlannedTarget` has them.
    """
    small = (PlannedFile(name, len(text), text, ()) for name, text in texts.items())
    planned = (*files, *small)

    def places(path: Path) -> list[Path]:
        return [path / file.name for file in planned]

    return PlannedTarget(
        target=str(target),
        name=default_output(source, target),
        files=planned,
        places=places,
        notes=notes,
        check=check,
        companions=lambda path: {},
        hint=hint,
        folder=True,
    )
