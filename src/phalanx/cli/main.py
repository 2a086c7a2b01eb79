"""The `phalanx` command."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.logging import RichHandler

from phalanx.cli.console import console
from phalanx.cli.demo import demo
from phalanx.cli.listing import list_algorithms
from phalanx.cli.parser import Parser, build
from phalanx.cli.report import report
from phalanx.cli.train import default_out, train
from phalanx.errors import PhalanxError

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "report": report,
    "list": list_algorithms,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command. Exit codes: 0 done, 1 stopped by faults, 2 bad input, 130 interrupted."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[RichHandler()])
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build(COMMANDS)
    config = parser.parse_args(_resumed(arguments))
    command = config.command
    if command == "train" and not (config.train.out or config.train.resume):
        config.train.out = str(default_out())
    try:
        chosen = vars(parser.instantiate(config)[command])
    except ValueError as error:  # what a class has against its arguments
        parser.error(str(error))
    chosen.pop("config", None)
    if command == "train":
        _save_config(parser, config, chosen["resume"] or chosen["out"])
    try:
        COMMANDS[command](**chosen)
    except PhalanxError as error:
        _leave(f"stopped: {error}", 1, chosen)
    except (ValueError, ImportError) as error:
        _discard_unused(chosen)
        parser.error(str(error))
    except FileNotFoundError as error:
        _discard_unused(chosen)
        parser.error(f"there is no file {error.filename}")
    except KeyboardInterrupt as error:
        _leave(f"interrupted; {error}" if str(error) else "interrupted", 130, chosen)


def _resumed(arguments: list[str]) -> list[str]:
    """Puts the saved configuration of a run to be resumed before the options given now."""
    if arguments[:1] != ["train"]:
        return arguments
    for position, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option == "--resume":
            folder = value or "".join(arguments[position + 1 : position + 2])
            saved = Path(folder) / "config.yaml"
            if saved.is_file():
                return ["train", "--config", str(saved), *arguments[1:]]
    return arguments


def _save_config(parser: Parser, config: Any, folder: Path) -> None:
    """Writes the resolved options into the run folder, so that one file repeats the run."""
    if config.train.resume is None and (folder / "metrics.jsonl").exists():
        parser.error(f"out must be a new folder, got {folder}, which holds a run; --resume it")
    saved = config.train.clone()
    saved.out = saved.resume = None
    saved.pop("config", None)
    folder.mkdir(parents=True, exist_ok=True)
    text = parser.subcommands["train"].dump(saved, skip_none=False)
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def _discard_unused(chosen: dict[str, Any]) -> None:
    """Removes a run folder in which no run began."""
    folder = chosen.get("out")
    if folder is not None and [path.name for path in folder.glob("*")] == ["config.yaml"]:
        (folder / "config.yaml").unlink()
        folder.rmdir()


def _leave(message: str, code: int, chosen: dict[str, Any]) -> None:
    """Says why it ended and how to go on, and exits."""
    console.print(f"phalanx: {message}", soft_wrap=True, markup=False)
    folder = chosen.get("resume") or chosen.get("out")
    if folder is not None and (folder / "checkpoints").is_dir():
        command = f"phalanx train --resume {folder}"
        console.print(f"Go on with: {command}", soft_wrap=True, markup=False)
    sys.exit(code)
