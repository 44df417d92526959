"""Scripts with which bash, zsh and fish complete the command line. Imports no torch.

A script has all words in it, so that a shell starts no Python: the tools, and the flags
of each. `run.py completion` collects and prints them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence

from toolkit.version import NAME

JOBS = "*"
"""In place of a tool: the flags of jobs. As a pattern of a shell, it fits any word."""

Flags = Mapping[str, Sequence[str]]
"""Tool -> its flags; last `JOBS`."""


def script(shell: str, tools: Mapping[str, str], flags: Flags) -> str:
    """The script for a shell of SHELLS. tools: with their purpose.

    >>> text = script("fish", {"new": "write a job"}, {"new": ["--gpu"], JOBS: ["--set"]})
    >>> text.splitlines()[1]
    "complete -c atelier -n '__fish_seen_subcommand_from new' -l gpu"
    """
    return SHELLS[shell](tools, flags).replace("COMMAND", NAME.lower())


def _bash(tools: Mapping[str, str], flags: Flags) -> str:
    cases = "\n".join(
        f'                {tool}) words="{" ".join(of_tool)}" ;;'
        for tool, of_tool in flags.items()
    )
    return f"""_COMMAND() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words=
    case $COMP_CWORD:$current in
        *:-*)
            case ${{COMP_WORDS[1]}} in
{cases}
            esac ;;
        1:*) words="{" ".join(tools)}" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    local IFS=$'\\n'
    COMPREPLY+=($(compgen -f -- "$current"))
}}
complete -o filenames -F _COMMAND COMMAND"""


def _zsh(tools: Mapping[str, str], flags: Flags) -> str:
    cases = "\n".join(
        f"                {tool}) found=({' '.join(of_tool)}) ;;"
        for tool, of_tool in flags.items()
    )
    return f"""#compdef COMMAND
_COMMAND() {{
    local -a found
    case $CURRENT:$PREFIX in
        *:-*)
            case $words[2] in
{cases}
            esac ;;
        2:*) found=({" ".join(tools)}) ;;
    esac
    compadd -a found
    _files
}}
if [ "$funcstack[1]" = _COMMAND ]; then _COMMAND "$@"; else compdef _COMMAND COMMAND; fi"""


def _fish(tools: Mapping[str, str], flags: Flags) -> str:
    lines = [
        f"complete -c COMMAND -n __fish_use_subcommand -a {tool} -d {shlex.quote(purpose)}"
        for tool, purpose in tools.items()
    ]
    for tool, of_tool in flags.items():
        seen = f"__fish_seen_subcommand_from {tool}"
        if tool == JOBS:
            seen = f"not __fish_seen_subcommand_from {' '.join(tools)}"
        lines += [f"complete -c COMMAND -n '{seen}' -l {flag[2:]}" for flag in of_tool]
    return "\n".join(lines)


SHELLS: Mapping[str, Callable[[Mapping[str, str], Flags], str]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
