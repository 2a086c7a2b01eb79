"""Imports every module of the package that is found; run by a bare interpreter, without pytest."""

import importlib
import pkgutil
import sys

import phalanx


def main() -> None:
    names = [found.name for found in pkgutil.walk_packages(phalanx.__path__, "phalanx.")]
    for name in names:
        importlib.import_module(name)
    sys.stdout.write(f"{len(names)} modules imported from {phalanx.__path__[0]}\n")


if __name__ == "__main__":
    main()
