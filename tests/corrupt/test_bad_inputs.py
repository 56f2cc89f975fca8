"""docs/design/bad-inputs.md names, for each of its rows, tests that there are."""

from __future__ import annotations

import re
import subprocess
import sys

from places import TESTS

PAGE = TESTS.parent / "docs" / "design" / "bad-inputs.md"
ROW = re.compile(r"^\*\*(\d+)\. (.+)\*\*\n\n((?:- `.+`\n)+)", re.MULTILINE)


def rows() -> dict[int, list[str]]:
    """The tests that each row names."""
    text = PAGE.read_text(encoding="utf-8")
    return {int(number): re.findall("`(.+)`", tests) for number, _, tests in ROW.findall(text)}


def test_there_are_all_rows_once() -> None:
    assert len(ROW.findall(PAGE.read_text(encoding="utf-8"))) == 54
    assert list(rows()) == list(range(1, 55))


def test_every_row_s_tests_are_collected() -> None:
    named = sorted({name for tests in rows().values() for name in tests})
    files = sorted({name.split("::")[0] for name in named})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files],
        cwd=TESTS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    collected = [line.removeprefix("tests/") for line in done.stdout.splitlines() if "::" in line]
    for name in named:
        # A name alone stands for all its cases, and an asterisk for the rest of a case's.
        start = name[:-2] if name.endswith("*]") else name
        found = [
            test
            for test in collected
            if test == name
            or test.startswith(f"{name}[")
            or (start != name and test.startswith(start))
        ]
        assert found, name
