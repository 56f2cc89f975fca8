"""The processors of this machine: their name, which of them to run on, and memory in use."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from phiquant.errors import UsageError
from phiquant.tensor import check_threads

_TOPOLOGY = Path("/sys/devices/system/cpu")


def machine() -> str:
    """Processor, system and instruction set: ``AMD EPYC (Linux, x86_64)``."""
    return f"{_name()} ({platform.system()}, {platform.machine()})"


def _name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def choose(threads: int | None) -> tuple[int, tuple[int, ...] | None]:
    """How many threads to run, and the processors for them; None where systems let nobody choose.

    Processors of different cores come before those that share one, and the default is one thread a
    core: two that share a core slow each other down where both multiply matrices.

    Raises
    ------
    phiquant.UsageError
        More threads than processors: they would wait for each other, and times mean nothing.
    """
    if not hasattr(os, "sched_setaffinity"):
        return _at_most(check_threads(threads), os.cpu_count() or 1), None
    cores: dict[str, list[int]] = {}
    for processor in sorted(os.sched_getaffinity(0)):
        cores.setdefault(_core(processor), []).append(processor)
    first = [members[0] for members in cores.values()]
    others = [one for members in cores.values() for one in members[1:]]
    there = first + others
    count = len(first) if threads is None else _at_most(check_threads(threads), len(there))
    return count, tuple(sorted(there[:count]))


def _at_most(threads: int, there: int) -> int:
    if threads > there:
        raise UsageError(
            f"{threads} threads on {there} processors wait for each other",
            remedy=f"Choose at most {there}: --threads {there} (threads={there}).",
        )
    return threads


def _core(processor: int) -> str:
    """A name for the core that a processor is part of."""
    try:
        path = _TOPOLOGY / f"cpu{processor}" / "topology" / "thread_siblings_list"
        return path.read_text().strip()
    except OSError:
        return str(processor)


def pin(processors: Sequence[int] | None) -> None:
    """Keep this process on some processors: threads that it has, and those that it will start."""
    if processors is None or not hasattr(os, "sched_setaffinity"):
        return
    os.sched_setaffinity(0, processors)  # this thread, which new ones take after
    try:
        others = [int(path.name) for path in Path("/proc/self/task").iterdir()]
    except OSError:
        return
    for thread in others:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(thread, processors)


def resident() -> tuple[int | None, int | None]:
    """Bytes of physical memory that this process has now, and has had at most, if it is known."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None, _most()
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s*(\d+) kB", text, re.MULTILINE))
    now, most = (int(found[key]) * 1024 if key in found else None for key in ("VmRSS", "VmHWM"))
    return now, most


def _most() -> int | None:
    try:
        import resource
    except ImportError:  # not on this platform
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
