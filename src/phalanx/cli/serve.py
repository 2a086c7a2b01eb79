"""`phalanx serve`: the servers of secure aggregation, as processes."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from phalanx.aggregation import Aggregator, MultiKrum
from phalanx.cli.console import console
from phalanx.privacy import (
    Dealer,
    Peer,
    SecureSetup,
    WorkerServer,
    channel_credentials,
    server_credentials,
)


def serve(
    role: Literal["dealer", "worker-server"],
    secrets: Path,
    setup: SecureSetup,
    rule: Aggregator = MultiKrum(num_byzantine=1),  # noqa: B008 - frozen
    address: str = "localhost:0",
    dealer: str | None = None,
    certificate: Path | None = None,
    private_key: Path | None = None,
    authority: Path | None = None,
    plain: bool = False,
    timeout_s: float = 30.0,
) -> None:
    """Runs the dealer or the worker server of secure aggregation until it is interrupted.

    The model server leads the rounds, from the program that trains: `phalanx.privacy.ModelServer`.

    Example: phalanx serve dealer dealer.json --setup.num_workers 10 --setup.dim 4810
    --address localhost:7001

    Args:
        role: Which of the two.
        secrets: A JSON file: "accepts" is a table of names and keys, one for every caller; a worker
            server also has its own key at the "dealer". `phalanx.privacy.fresh_keys` makes them.
        setup: The public parameters.
        rule: The rule that runs on the distances, at the worker server.
        address: Where to listen; port 0 takes any.
        dealer: Where the dealer listens, for a worker server; not needed if the rule is Mean.
        certificate: This server's certificates, PEM; needed to listen beyond this machine.
        private_key: The key of the certificate, PEM.
        authority: Who signed the dealer's certificate, PEM.
        plain: Do not encrypt, whatever the address.
        timeout_s: How long the worker server waits for others.
    """
    known = _known(secrets)
    security: dict[str, Any] = {
        "credentials": server_credentials(certificate, private_key),
        "plain": plain,
    }
    if role == "dealer":
        with closing(Dealer(setup, known["accepts"], address, **security)) as running:
            _say(running.address)
            while True:
                time.sleep(60.0)
    peer = None
    if dealer is not None:
        peer = Peer(dealer, known["dealer"], channel_credentials(authority), plain)
    with closing(
        WorkerServer(setup, rule, known["accepts"], peer, address, timeout_s=timeout_s, **security)
    ) as server:
        _say(server.address)
        server.serve()


def _say(address: str) -> None:
    console.print(f"listening on {address}", soft_wrap=True)


def _known(secrets: Path) -> dict[str, Any]:
    """The party's file of keys, as far as the role needs it."""
    try:
        found: Any = json.loads(secrets.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except ValueError as error:
        raise ValueError(f"secrets must be a JSON file, got {secrets}: {error}") from error
    table = found.get("accepts") if isinstance(found, dict) else None
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table.values()):
        raise ValueError(f'secrets must hold a table "accepts", names with keys; got {secrets}')
    own = found.get("dealer", "")
    if not isinstance(own, str):
        raise ValueError(f'secrets must hold the key at the "dealer" as a string; got {secrets}')
    return {"accepts": table, "dealer": own}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON in which no name stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return found
