"""`phalanx completion`: commands, options and classes, completed by the shell."""

import argparse
import inspect
from typing import Any, Literal

from phalanx.cli.parser import Parser, named


def completion(shell: Literal["bash", "zsh", "tcsh"], _parser: Parser | None = None) -> None:
    """Prints the script that makes a shell complete commands, options and classes.

    Example: phalanx completion bash > ~/.local/share/bash-completion/completions/phalanx

    Args:
        shell: Whose script; it needs the package shtab.
    """
    try:
        import shtab  # an extra, of use here only
    except ImportError as error:
        raise ImportError("completion needs the package shtab: pip install shtab") from error

    assert _parser is not None  # `main` gives it
    plain = argparse.ArgumentParser(prog="phalanx", description=_parser.description)
    commands = plain.add_subparsers()
    for name, one in _parser.subcommands.items():
        _copy(one, commands.add_parser(name, help=str(one.description).partition("\n")[0]))
    print(shtab.complete(plain, shell))


def _copy(found: Parser, plain: argparse.ArgumentParser) -> None:
    """The options of a command with the classes that can follow, and the fields of these."""
    fields = set[str]()
    for action in found._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        words = action.option_strings or [action.dest]
        classes = named(getattr(action, "_typehint", None))
        choices: Any = [one.__name__ for one in classes] or action.choices
        text = " ".join((action.help or "").split()).partition(". ")[0].replace("%", "%%")
        plain.add_argument(*words, choices=choices, help=text)
        names = (name for one in classes for name in inspect.signature(one).parameters)
        fields |= {f"{words[0]}.{name}" for name in names}
    for option in sorted(fields):
        plain.add_argument(option, help=f"field of the class of {option.partition('.')[0]}")
