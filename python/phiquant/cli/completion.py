"""``phiquant completion``: what a shell runs to complete commands, options, targets and names."""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    BashComplete,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from phiquant.cli.options import SETTINGS, Command
from phiquant.cli.terminal import put

#: Where click finds out that a shell asks; see entry.py.
VARIABLE = "_PHIQUANT_COMPLETE"

_EXAMPLES = """\b
Examples:
  eval "$(phiquant completion bash)"           # in ~/.bashrc
  eval "$(phiquant completion zsh)"            # in ~/.zshrc
  phiquant completion fish > ~/.config/fish/completions/phiquant.fish"""

# click's own script takes the words as bash breaks them, and bash breaks gguf:q4_k_m at the colon:
# here the line itself is handed on, and what stands before the colon is taken off the answers.
_BASH = """\
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" word before="" type value
    word="${line##*[[:space:]]}"
    [[ $word == --*=* ]] && word="${word#*=}"
    [[ $word == *:* && $COMP_WORDBREAKS == *:* ]] && before="${word%%"${word##*:}"}"
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$before"}") ;;
        esac
        [[ $value == *: ]] && compopt -o nospace
    done < <(env %(complete_var)s=bash_complete COMP_LINE="$line" "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class Bash(BashComplete):
    """Completion for bash in which a colon is a part of the word."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that it stands at the end of."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        if not words or line[-1:].isspace():
            return words, ""
        return words[:-1], words[-1]


@click.command("completion", cls=Command, context_settings=SETTINGS, epilog=_EXAMPLES)
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print what makes a shell complete phiquant's commands: bash (from 4.4), zsh or fish.

    It completes commands, options, targets (--to), codecs, and names of recorded models.
    """
    from phiquant.cli.commands import phiquant

    kind = get_completion_class(shell)
    assert kind is not None and issubclass(kind, ShellComplete)
    put(kind(phiquant, {}, "phiquant", VARIABLE).source().rstrip("\n"))
