"""Writes pages into files: never over anything that is no page."""

from __future__ import annotations

import os
from pathlib import Path

from phiquant.errors import IoError, UsageError

# What every page begins with; see phiquant.pages.page.document.
_START = b"<!doctype html>"


def check_page(path: Path) -> None:
    """Refuse a place where no page can be written, before the work that it would show.

    Raises
    ------
    phiquant.UsageError
        Something stands there that is no page.
    phiquant.IoError
        The folder does not exist or cannot be written to, or what stands there cannot be read.
    """
    folder = path.parent
    if not folder.is_dir():
        raise IoError("cannot be written: its folder does not exist", file=path)
    if not os.access(folder, os.W_OK):
        raise IoError(f"cannot be written: {folder} is read-only", file=path)
    if not path.exists():
        return
    try:
        is_page = path.is_file() and _begins_as_page(path)
    except OSError as error:
        raise IoError(f"cannot be read: {error.strerror}", file=path) from error
    if not is_page:
        raise UsageError(
            "is no HTML page, and would be replaced", file=path, remedy="Choose another name."
        )


def _begins_as_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_START)).lower() == _START


def write_page(path: Path, page: str) -> None:
    """Write a page: whole, or not at all.

    Raises
    ------
    phiquant.UsageError, phiquant.IoError
        As :func:`check_page`; or the disk is full.
    """
    check_page(path)
    staged = path.with_name(f".{path.name[:64]}.{os.getpid()}")
    try:
        try:
            with staged.open("xb") as file:
                file.write(page.encode())
            staged.replace(path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise IoError(f"cannot be written: {error.strerror}", file=path) from error
