"""What is refused before anything is read or written: outputs that cannot end well."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from phiquant.errors import IoError, UsageError

if TYPE_CHECKING:
    from phiquant.plan import Plan


def preflight(
    plan: Plan, outputs: tuple[Path, ...], *, overwrite: bool, companions: bool
) -> dict[Path, bytes]:
    """Refuse what cannot end well before anything is read or written; so does a dry run.

    Returns
    -------
    dict of Path to bytes
        The companions to write beside the results.

    Raises
    ------
    phiquant.UsageError
        An output exists, is a folder, or is the source itself.
    phiquant.IoError
        The folder is missing, the name too long, or the disk too full.
    """
    extras = _companions(plan, outputs) if companions else {}
    results = [
        place
        for target, path in zip(plan.targets, outputs, strict=True)
        for place in ([] if target.folder else target.places(path))
    ]
    folders = [p for t, p in zip(plan.targets, outputs, strict=True) if t.folder]
    _check_outputs(plan, [*results, *extras], overwrite)
    _check_folders(plan, folders, overwrite)
    return extras


def paths_of(plan: Plan, outputs: tuple[Path, ...]) -> list[Path]:
    """Where each planned file will stand."""
    return [
        place
        for target, path in zip(plan.targets, outputs, strict=True)
        for place in target.places(path)
    ]


def _companions(plan: Plan, outputs: tuple[Path, ...]) -> dict[Path, bytes]:
    extras: dict[Path, bytes] = {}
    for target, path in zip(plan.targets, outputs, strict=True):
        for name, text in target.companions(path).items():
            place = path.parent / name
            if place in extras:
                raise UsageError(
                    f"{place} would be written for two targets", remedy="Convert them one by one."
                )
            extras[place] = text.encode()
    return extras


def _check_outputs(plan: Plan, paths: list[Path], overwrite: bool) -> None:
    inputs = {os.path.realpath(source.path) for source in plan.checkpoint.files}
    needed: dict[Path, int] = {}
    # Not Path's own methods: they raise for names too long and for links that go in circles.
    for path in paths:
        _check_name(path)
        parent = path.parent
        if not os.path.isdir(parent):  # noqa: PTH112
            raise IoError(
                "cannot be written: its folder does not exist",
                file=path,
                remedy=f"Create the folder first: mkdir -p {parent}",
            )
        if os.path.realpath(path) in inputs:
            raise UsageError(
                "is the source itself", file=path, remedy="Choose another name for the output."
            )
        if os.path.isdir(path):  # noqa: PTH112
            raise UsageError("is a folder", file=path, remedy="Name a file as the output.")
        if not overwrite and os.path.lexists(path):
            raise UsageError(
                "exists already",
                file=path,
                remedy="Choose another output, or pass --overwrite (overwrite=True).",
            )
    for path in paths:
        needed[path.parent] = plan.nbytes
    for parent, size in needed.items():
        disk = shutil.disk_usage(parent)
        if size > disk.free and disk.total > 0:  # some file systems do not tell, and say 0
            raise IoError(
                f"the disk has {disk.free} bytes free, and the result needs {size}",
                file=parent,
                remedy="Free some space, or write to another disk.",
            )


def _check_folders(plan: Plan, folders: list[Path], overwrite: bool) -> None:
    """As for files; what an existing folder may hold is checked when it is replaced."""
    inputs = {os.path.realpath(source.path) for source in plan.checkpoint.files}
    for path in folders:
        _check_name(path)
        parent = path.parent
        if not os.path.isdir(parent):  # noqa: PTH112
            raise IoError(
                "cannot be written: its folder does not exist",
                file=path,
                remedy=f"Create the folder first: mkdir -p {parent}",
            )
        if os.path.realpath(path) in {os.path.dirname(source) for source in inputs}:  # noqa: PTH120
            raise UsageError(
                "is the source's own folder", file=path, remedy="Choose another output."
            )
        if os.path.lexists(path) and not os.path.isdir(path):  # noqa: PTH112
            raise UsageError(
                "is no folder",
                file=path,
                remedy="This format is a folder of files: choose another name for the output.",
            )
        if not overwrite and os.path.isdir(path) and os.listdir(path):  # noqa: PTH112, PTH208
            raise UsageError(
                "exists already",
                file=path,
                remedy="Choose another output, or pass --overwrite (overwrite=True).",
            )
        disk = shutil.disk_usage(parent)
        if plan.nbytes > disk.free and disk.total > 0:
            raise IoError(
                f"the disk has {disk.free} bytes free, and the result needs {plan.nbytes}",
                file=parent,
                remedy="Free some space, or write to another disk.",
            )


def _check_name(path: Path) -> None:
    try:
        length = len(os.fsencode(path.name))
    except UnicodeEncodeError:
        raise UsageError("the output's name cannot be encoded", file=repr(path)) from None
    if length > 255:
        raise IoError(
            f"cannot be written: its name has {length} bytes, and file systems take 255",
            file=f"{path.name[:40]}...",
            remedy="Choose a shorter name.",
        )
    if "\0" in str(path):
        raise UsageError("the output's name has a NUL in it")
