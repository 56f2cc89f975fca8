"""Memory bounds for the tests of hostile files."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

PAGE = resource.getpagesize()


@contextlib.contextmanager
def little_memory(extra: int = 512 << 20) -> Iterator[None]:
    """Let the process map at most ``extra`` bytes more than it has now (Linux; elsewhere no bound).

    A hostile count that reaches an allocator becomes a MemoryError here, which no test expects.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    limit = mapped + extra
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
