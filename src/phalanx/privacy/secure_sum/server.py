"""Server of a secure sum: it relays keys and shares, and adds up and unmasks the vectors."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from phalanx.errors import SecureSumError, WireError, require
from phalanx.privacy.secure_sum import setup as wire
from phalanx.privacy.secure_sum.client import PHASES, pair_key, share_digest
from phalanx.privacy.secure_sum.keys import (
    KEY_BYTES,
    SecretKey,
    add_mask,
    as_bytes,
    digest,
)
from phalanx.privacy.secure_sum.setup import Message, SumSetup, places, taken
from phalanx.privacy.secure_sum.shamir import SHARE_BYTES, combine_shares

Ask = Callable[[int, str, Mapping[int, Message]], Mapping[int, object]]
"""Asks clients in a phase of an attempt, each its own request; what those sent who answered."""

_SELF, _MASK = 0, 1  # kinds of shares, by their order in a pair


class OpenedSum(NamedTuple):
    """Outcome of a secure sum.

    Attributes:
        total: `(width,)`, the sum of the vectors of `clients` modulo 2^bits; None if it was spoiled
            by somebody who is marked.
        clients: whose vectors are in it, by place.
        marked: why, by place: clients that sent what no client sends that follows the protocol.
        lost: why, by place: clients that dropped out, or were left out without a verdict.
    """

    total: Tensor | None
    clients: tuple[int, ...]
    marked: Mapping[int, str]
    lost: Mapping[int, str]


class _Spoiled(Exception):
    """The secrets of clients cannot be put together from what they dealt."""

    def __init__(self, clients: list[int]) -> None:
        super().__init__(clients)
        self.clients = clients


def run_secure_sum(setup: SumSetup, ask: Ask) -> OpenedSum:
    """All phases, from the server's side.

    Where too few clients can read what one dealt, the sum is begun anew without that one, by a
    setup with the next `attempt`, as long as nothing is opened. Each time there is a client less.

    Args:
        setup: the public parameters.
        ask: how clients are asked.

    Raises:
        SecureSumError: if fewer clients than the threshold last to the end.
    """
    marked: dict[int, str] = {}
    lost: dict[int, str] = {}
    while True:
        try:
            return SumServer(setup, marked, lost).run(ask)
        except _Spoiled as spoiled:
            for client in spoiled.clients:
                lost.setdefault(client, "shares unreadable")
            setup = replace(setup, attempt=setup.attempt + 1)


class SumServer:
    """One attempt at a secure sum.

    Memory: one vector beside those that arrive; and what clients deal, `160 n^2` bytes.

    Args:
        setup: the public parameters.
        marked: clients that are marked, and why; filled in.
        lost: clients that are left out without a verdict, and why; filled in.
    """

    def __init__(self, setup: SumSetup, marked: dict[int, str], lost: dict[int, str]) -> None:
        self.setup, self.marked, self.lost = setup, marked, lost
        self.adverts: dict[int, Tensor] = {}
        self.dealt: dict[int, Tensor] = {}
        self.commitments: dict[int, bytes] = {}
        self.unreadable: dict[int, set[int]] = {}  # whose shares, by who arrived
        self.revealed: dict[int, Tensor] = {}
        self._total = torch.zeros(setup.width, dtype=setup.dtype)

    def run(self, ask: Ask) -> OpenedSum:
        """All phases of the attempt."""
        everybody = set(range(self.setup.num_clients)) - {*self.marked, *self.lost}
        self._phase(ask, "advertise", {one: {} for one in everybody}, self._take_advert)
        self._leave_out_twins()
        who = torch.tensor(sorted(self.adverts))
        self._require(len(who))
        told = {"clients": who, "adverts": torch.stack([self.adverts[one] for one in who.tolist()])}
        self._phase(ask, "share", dict.fromkeys(who.tolist(), told), self._take_dealt)
        dealers = sorted(self.dealt)
        self._require(len(dealers))
        requests = {
            one: {
                "clients": torch.tensor(dealers),
                "dealt": torch.stack([self.dealt[dealer][one] for dealer in dealers]),
            }
            for one in dealers
        }
        self._phase(ask, "mask", requests, self._take_masked)
        arrived = sorted(self.unreadable)
        self._require(len(arrived))
        self._judge_dealers(dealers, arrived)
        dropped = [one for one in dealers if one not in self.unreadable]
        told = {"arrived": torch.tensor(arrived), "dropped": _tensor(dropped)}
        asked = [*((one, _SELF) for one in arrived), *((one, _MASK) for one in dropped)]
        self._phase(
            ask,
            "unmask",
            dict.fromkeys(arrived, told),
            lambda holder, message: self._take_shares(holder, message, asked),
        )
        self._require(len(self.revealed))
        total = self._unmasked(asked, arrived)
        lost = {one: why for one, why in self.lost.items() if one not in self.unreadable}
        return OpenedSum(total, tuple(arrived), self.marked, lost)

    def below_threshold(self, left: int | None = None) -> SecureSumError:
        """The error of a sum that is not opened."""
        n, t = self.setup.num_clients, self.setup.needed
        left = n - len({*self.marked, *self.lost}) if left is None else left
        gone = {**self.lost, **self.marked}
        return SecureSumError(
            f"threshold must be reached: {t} of {n} clients, got {left}; the sum is not opened "
            f"(missing: {dict(sorted(gone.items()))})",
            workers=sorted(gone),
            bound=n - t,
        )

    def _require(self, left: int) -> None:
        if left < self.setup.needed:
            raise self.below_threshold(left)

    def _phase(
        self,
        ask: Ask,
        phase: str,
        requests: Mapping[int, Message],
        take: Callable[[int, object], None],
    ) -> None:
        """Asks, and takes in what comes; what is malformed marks its sender, and ends nothing."""
        assert phase in PHASES
        replies = ask(self.setup.attempt, phase, requests)
        for client in sorted(requests):
            if client not in replies:
                self.lost.setdefault(client, f"dropped out ({phase})")
                continue
            try:
                take(client, replies[client])
            except WireError as error:
                self.marked[client] = f"{phase}: {error}"

    def _take_advert(self, client: int, message: object) -> None:
        (advert,) = taken(message, advert=(torch.uint8, (wire.ADVERT_BYTES,)))
        told = as_bytes(advert)
        tag = self.setup.tag(client)
        require(told[: len(tag)] == tag, "advertise keys of this client, for this sum")
        for key in _keys(told):
            SecretKey(_PROBE).agree(key, b"probe")
        self.adverts[client] = advert.clone()

    def _leave_out_twins(self) -> None:
        """Leaves out clients that advertise one key: who copied it, nobody can tell."""
        holders: dict[bytes, list[int]] = {}
        for client, advert in self.adverts.items():
            first, second = _keys(as_bytes(advert))
            holders.setdefault(first, []).append(client)
            holders.setdefault(second, []).append(client)
        for clients in holders.values():
            for client in clients if len(clients) > 1 else ():
                self.adverts.pop(client, None)
                self.lost[client] = "one key with another client"

    def _take_dealt(self, dealer: int, message: object) -> None:
        n = self.setup.num_clients
        dealt, commitment = taken(
            message,
            dealt=(torch.uint8, (n, wire.DEAL_BYTES)),
            commitment=(torch.uint8, (wire.DIGEST_BYTES,)),
        )
        self.dealt[dealer], self.commitments[dealer] = dealt.clone(), as_bytes(commitment)

    def _take_masked(self, client: int, message: object) -> None:
        masked, failed = taken(
            message,
            masked=(self.setup.dtype, (self.setup.width,)),
            unreadable=(torch.int64, (None,)),
        )
        unreadable = places(failed, self.setup.num_clients)
        self._total += masked
        self.unreadable[client] = set(unreadable) & set(self.dealt)

    def _judge_dealers(self, dealers: list[int], arrived: list[int]) -> None:
        """Who dealt what too few can read.

        No more than `n - t` clients can be faulty in a sum that is opened; so one is marked only
        if more than that complain.
        """
        n, t = self.setup.num_clients, self.setup.needed
        hopeless = []
        for dealer in dealers:
            complaints = sum(dealer in self.unreadable[one] for one in arrived)
            if complaints > n - t:
                self.marked[dealer] = "share: shares that cannot be read, or do not verify"
            if len(arrived) - complaints < t:
                hopeless.append(dealer)
        if hopeless:
            raise _Spoiled(hopeless)

    def _take_shares(self, holder: int, message: object, asked: list[tuple[int, int]]) -> None:
        (shares,) = taken(message, shares=(torch.uint8, (len(asked), SHARE_BYTES)))
        for (dealer, kind), share in zip(asked, shares, strict=True):
            if dealer in self.unreadable[holder]:
                continue
            row = as_bytes(self.dealt[dealer][holder])
            wanted = row[len(row) - 2 * wire.DIGEST_BYTES :][kind * wire.DIGEST_BYTES :]
            found = share_digest(self.setup, dealer, holder, kind, as_bytes(share))
            require(
                found == wanted[: wire.DIGEST_BYTES],
                f"reveal the share that client {dealer} dealt",
            )
        self.revealed[holder] = shares.clone()

    def _unmasked(self, asked: list[tuple[int, int]], arrived: list[int]) -> Tensor | None:
        """The sum without masks; None if somebody dealt shares of no secret, and is marked."""
        secrets: dict[int, bytes] = {}
        spoiled = False
        for number, (dealer, kind) in enumerate(asked):
            holders = [one for one in self.revealed if dealer not in self.unreadable[one]]
            if len(holders) < self.setup.needed:
                raise self.below_threshold(len(holders))
            shares = {
                one: as_bytes(self.revealed[one][number]) for one in holders[: self.setup.needed]
            }
            secret = combine_shares(shares)
            if secret is None or not self._fits(dealer, kind, secret):
                # All shares are those that it dealt, and nobody else could have made them.
                self.marked[dealer] = "share: shares of no secret"
                spoiled = True
            else:
                secrets[dealer] = secret
        if spoiled:
            return None
        for dealer, kind in asked:
            if kind == _SELF:
                add_mask(self._total, secrets[dealer], -1)
                continue
            owner = SecretKey(secrets[dealer])
            for other in arrived:
                public = _keys(as_bytes(self.adverts[other]))[1]
                key = pair_key(self.setup, owner, public, dealer, other)
                add_mask(self._total, key, -1 if dealer < other else 1)
        return self._total

    def _fits(self, dealer: int, kind: int, secret: bytes) -> bool:
        """Whether a secret is the one that its owner committed itself to."""
        if kind == _SELF:
            purpose = self.setup.purpose("self-mask", dealer)
            return digest(purpose, secret) == self.commitments[dealer]
        return SecretKey(secret).public == _keys(as_bytes(self.adverts[dealer]))[1]


_PROBE = bytes(range(KEY_BYTES))  # a secret key of nobody, to see whether a public key is one


def _keys(advert: bytes) -> tuple[bytes, bytes]:
    """The key to seal by, and the key to agree on masks by."""
    return advert[wire.TAG_BYTES : wire.TAG_BYTES + KEY_BYTES], advert[-KEY_BYTES:]


def _tensor(clients: list[int]) -> Tensor:
    return torch.tensor(clients, dtype=torch.int64)
