"""Launcher: `python -m phalanx.federated.flower mylab.federation --clients 4`."""

import argparse
import os
import sys
from pathlib import Path

from phalanx.federated.flower.deployment import deploy
from phalanx.training.interruption import terminable


def main(argv: list[str] | None = None) -> int:
    """Runs a federation on this machine.

    Exit codes: 0 done; 1 the run failed; 2 bad input; 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m phalanx.federated.flower",
        description="Starts a SuperLink and its nodes on this machine, with TLS and a key for each "
        "node, runs a federation on them, and ends all of them.",
    )
    parser.add_argument("module", help="module that holds server_app and client_app of as_flower")
    parser.add_argument("--clients", type=int, required=True, help="nodes to start")
    parser.add_argument("--folder", type=Path, default=Path("federation"), help="keys and logs")
    parser.add_argument("--timeout_s", type=float, default=3600.0, help="bound of the whole run")
    given = parser.parse_args(argv)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with terminable():
            status = deploy(given.module, given.clients, given.folder, given.timeout_s)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, TimeoutError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(status)
    if status != "finished:completed":
        print(f"error: see {given.folder}/link.log", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
