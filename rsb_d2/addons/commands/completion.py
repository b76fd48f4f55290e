"""Print a script that completes programs and options in bash or zsh.

eval "$(rsb-d2 completion bash)"
    in ~/.bashrc; with zsh in ~/.zshrc, after compinit
"""

import argparse
from typing import List

_SCRIPT = """\
_rsb_d2() {{
    local words=""
    case "${{COMP_WORDS[1]}}:$3" in
{cases}
    esac
    [ "$COMP_CWORD" = 1 ] && words="{programs}"
    COMPREPLY=($(compgen -W "$words" -- "$2"))
}}
complete -o default -F _rsb_d2 rsb-d2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(args: argparse.Namespace) -> int:
    from . import make_parser

    if args.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    programs = _subparsers(make_parser())
    cases = [line for name, parser in programs.items() for line in _cases(name, parser)]
    print(_SCRIPT.format(cases="\n".join(cases), programs=" ".join(programs)), end="")
    return 0


def _subparsers(parser: argparse.ArgumentParser) -> dict:
    return next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))


def _cases(name: str, parser: argparse.ArgumentParser) -> List[str]:
    """Return the lines for the values of a program's options, and for the options themselves."""
    lines, options = [], []
    for action in parser._actions:
        options += action.option_strings or action.choices or []
        if action.option_strings and action.choices:
            flags = "|".join(f"{name}:{flag}" for flag in action.option_strings)
            lines.append(f'        {flags}) words="{" ".join(action.choices)}" ;;')
    return [*lines, f'        {name}:*) words="{" ".join(options)}" ;;']
