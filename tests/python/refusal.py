"""What every refusal of a bad checkpoint has in common."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import phiquant as pq


class Refusal:
    """refused(source, class, *words) converts, and checks the refusal."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __call__(
        self, source: Path | str, kind: type[pq.PhiquantError], *words: str, to: str = "q4_k_m"
    ) -> pq.PhiquantError:
        start = time.process_time()
        with pytest.raises(pq.PhiquantError) as caught:
            pq.convert(source, to, self.out)
        # Work, not waiting: a second at most, generously doubled for slow machines.
        assert time.process_time() - start < 2
        error = caught.value
        assert type(error) is kind, error
        assert error.exit_code in (3, 4), error
        for word in words:
            assert word in str(error), error
        assert str(error).isprintable(), error
        assert list(self.out.iterdir()) == []
        return error
