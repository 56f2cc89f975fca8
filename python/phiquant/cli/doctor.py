"""``phiquant doctor``: a look at the machine and the installation."""

from __future__ import annotations

import sys

import click

from phiquant.cli.options import SETTINGS, Command, json_option
from phiquant.cli.terminal import heading, put, put_json, styled


@click.command("doctor", cls=Command, context_settings=SETTINGS)
@json_option
def command(as_json: bool) -> None:
    """Look at this machine and this installation.

    Version, instruction sets, memory, disk, packages, runtimes and the hub's cache. Exits with 0
    even if it finds problems; --json lists them under "problems".
    """
    from phiquant import doctor
    from phiquant.texts import printable

    findings = doctor.examine()
    if as_json:
        put_json(doctor.to_json(findings))
        return
    group = ""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        if finding.group != group:
            if group:
                put()
            group = finding.group
            put(heading(group))
        mark = styled("! ", sys.stdout, fg="red", bold=True) if finding.problem else "  "
        put(f"{mark}{finding.name:<{width}}  {printable(finding.value)}")
    put()
    problems = [finding.problem for finding in findings if finding.problem]
    for problem in problems:
        put(styled("problem:", sys.stdout, fg="red", bold=True) + f" {printable(problem)}")
    if not problems:
        put("No problems found.")
