"""Entry point of the `phalanx` command."""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.logging import RichHandler

from phalanx.cli.audit_backdoor import audit_backdoor
from phalanx.cli.compare import compare
from phalanx.cli.completion import completion
from phalanx.cli.console import complaints
from phalanx.cli.demo import demo
from phalanx.cli.emulate_links import emulate_links
from phalanx.cli.feasibility import feasibility
from phalanx.cli.federate import federate
from phalanx.cli.feebee import feebee
from phalanx.cli.fuse import fuse
from phalanx.cli.generate import generate
from phalanx.cli.listing import list_algorithms
from phalanx.cli.parser import Parser, build, spelled, underscored
from phalanx.cli.plan import plan
from phalanx.cli.report import report
from phalanx.cli.reproduce import reproduce
from phalanx.cli.serve import serve
from phalanx.cli.train import default_out, train
from phalanx.errors import PhalanxError
from phalanx.training.interruption import terminable

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "federate": federate,
    "compare": compare,
    "audit-backdoor": audit_backdoor,
    "feasibility": feasibility,
    "feebee": feebee,
    "plan": plan,
    "report": report,
    "fuse": fuse,
    "generate": generate,
    "reproduce": reproduce,
    "serve": serve,
    "emulate-links": emulate_links,
    "list": list_algorithms,
    "completion": completion,
}
_RUNS = ("train", "federate")  # commands that fill a run folder, and resume it


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command.

    Exit codes: 0 done; 1 stopped by faults, of workers, of the engine or of the disk; 2 bad input,
    a folder that another process writes to and a run without a whole checkpoint among it; 3 an
    unrealistic target of `feasibility`; 130 interrupted by Ctrl-C or SIGTERM.
    """
    with terminable():
        try:
            _main(argv)
        except KeyboardInterrupt:
            _leave("interrupted", 130, {})


def _main(argv: Sequence[str] | None) -> None:
    logging.basicConfig(
        format="%(message)s", level=logging.WARNING, handlers=[RichHandler(console=complaints)]
    )
    if os.getcwd() not in sys.path:  # where `mylab.rules.ClosestPair` may be, as for `python -m`
        sys.path.insert(0, os.getcwd())
    arguments = underscored(sys.argv[1:] if argv is None else argv)
    # Completion is of all commands; for the others, collecting all options would double the start.
    command = arguments[0] if arguments and arguments[0] != "completion" else None
    parser = build(COMMANDS, only=command)
    if not arguments:
        parser.error(f"command must be one of {', '.join(COMMANDS)}; see `phalanx --help`")
    if command in parser.subcommands:
        arguments = spelled(parser.subcommands[command], arguments)
    config = parser.parse_args(_resumed(arguments))
    command = config.command
    if command in _RUNS and not (config[command].out or config[command].resume):
        config[command].out = str(default_out())
    if command == "compare" and not config.compare.out:
        config.compare.out = str(default_out().with_name("compare-" + default_out().name))
    try:
        chosen = vars(parser.instantiate(config)[command])
    except ValueError as error:  # what a class has against its arguments
        parser.error(str(error))
    chosen.pop("config", None)
    if "_config" in inspect.signature(COMMANDS[command]).parameters:
        chosen["_config"] = _resolved(parser, config)
    if "_parser" in inspect.signature(COMMANDS[command]).parameters:
        chosen["_parser"] = parser
    try:
        COMMANDS[command](**chosen)
    except (ValueError, ImportError) as error:  # some of which are `PhalanxError`s, too
        parser.error(str(error))
    except PhalanxError as error:
        told = "\n".join([f"stopped: {error}", *getattr(error, "__notes__", ())])
        _leave(told, 1, chosen)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt as error:
        _leave(f"interrupted; {error}" if str(error) else "interrupted", 130, chosen)


def _resumed(arguments: list[str]) -> list[str]:
    """Puts the saved configuration of a run to be resumed before the options given now.

    `reproduce --all` stands for the recipe that is called all.
    """
    if arguments[:1] == ["reproduce"]:
        return ["all" if one == "--all" else one for one in arguments]
    if not arguments or arguments[0] not in _RUNS:
        return arguments
    for position, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option == "--resume":
            folder = value or "".join(arguments[position + 1 : position + 2])
            saved = Path(folder) / "config.yaml"
            if saved.is_file():
                return [arguments[0], "--config", str(saved), *arguments[1:]]
    return arguments


def _resolved(parser: Parser, config: Any) -> str:
    """The resolved options as YAML: the file that repeats the run."""
    saved = config[config.command].clone()
    for name, default in (("out", None), ("resume", None), ("changes", [])):
        if name in saved:
            saved[name] = default
    saved.pop("config", None)
    text: str = parser.subcommands[config.command].dump(saved, skip_unset=False)
    return text


def _leave(message: str, code: int, chosen: dict[str, Any]) -> None:
    """Says why it ended and how to go on, and exits."""
    complaints.print(f"phalanx: {message}", soft_wrap=True, markup=False)
    folder = chosen.get("resume") or chosen.get("out")
    if folder is not None and (folder / "checkpoints").is_dir():
        command = f"phalanx {'federate' if 'num_clients' in chosen else 'train'} --resume {folder}"
    elif folder is not None and (folder / "cells").is_dir():
        command = f"phalanx compare --config {folder / 'config.yaml'} --out {folder}"
    else:
        sys.exit(code)
    complaints.print(f"Go on with: {command}", soft_wrap=True, markup=False)
    sys.exit(code)
