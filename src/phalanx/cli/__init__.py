"""The `phalanx` command: what a user types, and what it answers."""

from phalanx.cli.main import main

__all__ = ["main"]
