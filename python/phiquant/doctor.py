"""What this machine offers to phiquant, and what is wrong with it: for ``phiquant doctor``."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from phiquant import _core
from phiquant.errors import PhiquantError
from phiquant.runtimes import runtimes
from phiquant.tensor import default_threads
from phiquant.texts import bytes_text

_DEPENDENCIES = ("numpy", "ml_dtypes", "huggingface_hub", "click", "tqdm")

# Programs that run what phiquant writes.
_PROGRAMS = ("llama-cli", "llama-server", "ollama")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    group, name : str
        ``machine``, ``memory``.
    value : str
        As people read it.
    data : Any
        As scripts read it.
    problem : str or None
        What is wrong with it, and what to do.
    """

    group: str
    name: str
    value: str
    data: Any
    problem: str | None = None


def examine(folder: Path | None = None) -> tuple[Finding, ...]:
    """Look at the installation, the machine, and the disk that ``folder`` is on (default: here)."""
    return (*_phiquant(), *_machine(folder or Path()), *_packages(), *_runtimes(), *_hub())


def to_json(findings: tuple[Finding, ...]) -> dict[str, Any]:
    """The findings as plain data, by group and name, and the list of problems."""
    groups: dict[str, Any] = {}
    for finding in findings:
        groups.setdefault(finding.group, {})[finding.name] = finding.data
    return groups | {"problems": [f.problem for f in findings if f.problem]}


def _phiquant() -> list[Finding]:
    version = str(_core.version)
    python = platform.python_version()
    return [
        Finding("phiquant", "version", version, version),
        Finding(
            "phiquant",
            "python",
            f"{python} ({sys.executable})",
            {"version": python, "executable": sys.executable},
        ),
    ]


def _machine(folder: Path) -> list[Finding]:
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    threads = default_threads()
    processors = os.cpu_count() or threads
    return [
        Finding("machine", "system", system, system),
        _instruction_sets(),
        Finding(
            "machine",
            "threads",
            f"{threads} of {processors} processors" if threads != processors else str(threads),
            threads,
        ),
        _memory(),
        _disk("machine", "disk", folder),
    ]


def _instruction_sets() -> Finding:
    available = list(_core.available_archs())
    data: dict[str, Any] = {"available": available, "active": None}
    try:
        active = _core.active_arch()
    except PhiquantError as error:
        problem = f"{error.cause}. {error.remedy or ''}".strip()
        if os.environ.get("PHIQUANT_ARCH"):
            problem = f"PHIQUANT_ARCH is {os.environ['PHIQUANT_ARCH']!r}: {problem}"
        return Finding(
            "machine", "instruction sets", f"none of {', '.join(available)}", data, problem
        )
    data["active"] = active
    why = ", as PHIQUANT_ARCH asks" if os.environ.get("PHIQUANT_ARCH") else ""
    others = [name for name in available if name != active]
    rest = f"; {', '.join(others)} too" if others else ""
    return Finding("machine", "instruction sets", f"{active}{why}{rest}", data)


def _memory() -> Finding:
    total, free = _physical_memory()
    data = {"total": total, "available": free}
    if free is None:
        value = "unknown" if total is None else f"{bytes_text(total)} in all"
        return Finding("machine", "memory", value, data)
    value = f"{bytes_text(free)} available of {bytes_text(total or free)}"
    problem = None
    if free < 400_000_000:
        problem = f"only {bytes_text(free)} of memory are available, and a run takes up to 300 MB"
    return Finding("machine", "memory", value, data, problem)


def _physical_memory() -> tuple[int | None, int | None]:
    """Bytes in all, and bytes that can be had now, a container's limit included."""
    facts = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts[key] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    total, free = facts.get("MemTotal"), facts.get("MemAvailable")
    if total is None:
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):
            return None, None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        total = min(total, limit)
        free = None if free is None else min(free, max(0, limit - used))
    except (OSError, ValueError):
        pass  # no limit
    return total, free


def _disk(group: str, name: str, folder: Path) -> Finding:
    standing = folder
    while not standing.exists() and standing != standing.parent:
        standing = standing.parent
    try:
        free = shutil.disk_usage(standing).free
    except OSError as error:
        problem = f"{folder}: the disk cannot be looked at: {error.strerror}"
        return Finding(group, name, "unknown", {"path": str(folder), "free": None}, problem)
    path = str(folder.absolute())
    return Finding(group, name, f"{bytes_text(free)} free in {path}", {"path": path, "free": free})


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> list[Finding]:
    findings = []
    for name in _DEPENDENCIES:
        version = _version(name)
        problem = None if version else f"{name} is missing: pip install {name}"
        findings.append(Finding("packages", name, version or "missing", version, problem))
    return findings


def _runtimes() -> list[Finding]:
    """What runs the results. None of it is needed to make them, so nothing here is a problem."""
    findings = []
    for one in runtimes():
        version = _version(one.distribution)
        value = version or f"not installed (runs {one.runs} from Python): {one.install}"
        data = {"version": version, "install": one.install}
        findings.append(Finding("runtimes", one.distribution, value, data))
    for name in _PROGRAMS:
        path = shutil.which(name)
        findings.append(Finding("runtimes", name, path or "not on PATH", {"path": path}))
    return findings


def _hub() -> list[Finding]:
    try:
        from huggingface_hub import constants
    except ImportError as error:
        cause = f"huggingface_hub cannot be imported: {error}"
        return [Finding("hub", "cache", "unknown", None, cause)]
    offline = bool(constants.HF_HUB_OFFLINE)
    return [
        _disk("hub", "cache", Path(constants.HF_HUB_CACHE)),
        Finding("hub", "address", constants.ENDPOINT, constants.ENDPOINT),
        Finding("hub", "offline mode", "on (HF_HUB_OFFLINE)" if offline else "off", offline),
    ]
