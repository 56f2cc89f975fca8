"""Shell completion, asked as shells ask: by their own programs where they are installed."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_process import environment, phiquant

import phiquant as pq
from phiquant.targets.names import GGUF_PRESETS, PRESETS
from places import DATA


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``phiquant`` is on the PATH."""
    command = tmp_path / "bin" / "phiquant"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m phiquant "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return environment(PATH=path, PHIQUANT_REGISTRY=str(tmp_path / "models.sqlite"))


# What bash does at a TAB, but for its own reading of the keys.
ASK = """
eval "$(phiquant completion bash)"
compopt() { :; }
for COMP_LINE in "$@"; do
    COMP_POINT=${#COMP_LINE}
    _phiquant_completion phiquant
    echo "${COMPREPLY[@]}"
done
"""


def bash(env: dict[str, str], *lines: str) -> list[list[str]]:
    """The answers to each line."""
    command = ["bash", "--norc", "--noprofile", "-c", ASK, "bash", *lines]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.returncode == 0
    return [line.split() for line in done.stdout.splitlines()]


def test_bash_completes_commands_options_targets_and_codecs(shell: dict[str, str]) -> None:
    wanted = {
        "phiquant con": ["convert"],
        "phiquant models ver": ["verify"],
        "phiquant convert x --emb": ["--embedding-type"],
        "phiquant convert x --quality b": ["best"],
        "phiquant convert x --output-type q6": ["q6_k"],
        "phiquant convert x --to q4_k_": ["q4_k_s", "q4_k_m"],
    }
    assert dict(zip(wanted, bash(shell, *wanted), strict=True)) == wanted
    (commands,) = bash(shell, "phiquant ")
    assert {"models", "convert", "formats", "completion"} <= set(commands)


def test_bash_completes_targets_of_every_format_behind_their_colon(shell: dict[str, str]) -> None:
    # The shell puts the answer in the place of what is behind the colon.
    wanted = {
        "phiquant convert x --to mlx:": list(PRESETS["mlx"]),
        "phiquant plan x --to=openvino:int4_a": ["int4_asym"],
        "phiquant plan x --to onnx:int8-s": ["int8-static"],
    }
    assert dict(zip(wanted, bash(shell, *wanted), strict=True)) == wanted
    everything = {f"{name}:{preset}" for name, presets in PRESETS.items() for preset in presets}
    (found,) = bash(shell, "phiquant plan x --to ")
    assert set(found) == everything | set(GGUF_PRESETS)


def test_bash_completes_names_of_recorded_models(
    shell: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIQUANT_REGISTRY", shell["PHIQUANT_REGISTRY"])
    pq.convert(DATA / "phi4mini", "q8_0", tmp_path / "tiny.gguf")
    assert bash(shell, "phiquant models show t") == [["tiny.gguf"]]
    Path(shell["PHIQUANT_REGISTRY"]).write_bytes(b"no database")
    assert bash(shell, "phiquant models show t") == [[]]


def test_a_tab_in_an_interactive_bash_completes_the_word(shell: dict[str, str]) -> None:
    child, terminal = pty.fork()
    if child == 0:
        env = shell | {"PS1": "ready> ", "TERM": "dumb", "INPUTRC": "/dev/null"}
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], env)
    shown = ""

    def until(text: str) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(terminal, 4096).decode()
        shown = shown.partition(text)[2]

    until("ready> ")
    os.write(terminal, b'eval "$(phiquant completion bash)"\n')
    until("\n")
    until("ready> ")
    os.write(terminal, b"echo phiquant conv\x15phiquant conv\t")
    until("phiquant convert ")
    os.write(terminal, b"x --to mlx:mixed_2\t")
    until("x --to mlx:mixed_2_6 ")
    os.write(terminal, b"\x15exit\n")
    os.waitpid(child, 0)
    os.close(terminal)


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_the_other_shells_have_scripts_of_their_own(name: str) -> None:
    done = phiquant("completion", name)
    assert done.returncode == 0
    assert f"_PHIQUANT_COMPLETE={name}_complete" in done.stdout
    if shutil.which(name):  # where it is not, its script is click's own
        checked = subprocess.run([name, "-n"], input=done.stdout, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


def test_an_unknown_shell_is_refused() -> None:
    done = phiquant("completion", "tcsh")
    assert done.returncode == 2 and "bash" in done.stderr
