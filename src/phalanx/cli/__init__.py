"""Command line: the `phalanx` command and its subcommands."""

from phalanx.cli.main import main

__all__ = ["main"]
