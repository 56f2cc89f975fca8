"""Every command in docs/cli.md is run, and shows what the page shows."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

from cli_process import environment

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "cli.md"

# What is another machine's or another second's.
_OF_THE_DAY = (
    (r"read in .*", "read in SECONDS"),
    (r"write, .* free in .*", "write, BYTES free in FOLDER"),
    (r"memory: .*", "memory: BYTES"),
)


def steady(text: str) -> str:
    for pattern, word in _OF_THE_DAY:
        text = re.sub(pattern, word, text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def test_the_page_shows_what_the_commands_show(tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(TESTS)
    (tmp_path / "models").mkdir()
    run = "phiquant() { '" + sys.executable + '\' -m phiquant "$@"; }; '
    blocks = re.findall(r"^```console\n\$ (.*)\n([^`]*)^```", PAGE.read_text(), flags=re.M)
    assert len(blocks) >= 10
    for command, shown in blocks:
        done = subprocess.run(
            ["/bin/sh", "-c", run + command],
            cwd=tmp_path,
            env=environment(PHIQUANT_REGISTRY=str(tmp_path / "models.sqlite")),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        same = doctest.OutputChecker().check_output(
            steady(shown), steady(done.stdout), doctest.ELLIPSIS
        )
        assert same, f"$ {command}\n{done.stdout}"
