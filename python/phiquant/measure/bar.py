"""A progress bar with the time left, or a function, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

#: True for a bar on stderr (a widget in notebooks), or a function of what is done and of all.
Progress = bool | Callable[[int, int], None]


class Bar:
    """Counts steps up to ``total``; ``begin`` of them were done before.

    As a context manager it gives a function to be called with the number of steps done.
    """

    def __init__(
        self, progress: Progress, total: int, *, about: str, unit: str, begin: int
    ) -> None:
        self._progress = progress
        self._total = total
        self._about, self._unit = about, unit
        self._done = begin
        self._bar: Any = None

    def __enter__(self) -> Callable[[int], None]:
        if callable(self._progress):
            report = self._progress
            return lambda done: report(done, self._total)
        if not self._progress:
            return lambda done: None
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=self._total,
            initial=self._done,
            unit=self._unit,
            unit_scale=True,
            desc=self._about,
            leave=False,
            file=sys.stderr,
            dynamic_ncols=True,
        )
        return self._advance

    def _advance(self, done: int) -> None:
        self._bar.update(done - self._done)
        self._done = done

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
