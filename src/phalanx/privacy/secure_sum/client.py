"""Client of a secure sum: four answers, each a pure function of a request and of what it kept."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from phalanx.errors import RequestRefusedError, WireError
from phalanx.privacy.secure_aggregation.protocol import Entropy, system_entropy
from phalanx.privacy.secure_sum import setup as wire
from phalanx.privacy.secure_sum.keys import (
    KEY_BYTES,
    SecretKey,
    add_mask,
    as_bytes,
    as_tensor,
    digest,
    seal,
    unseal,
)
from phalanx.privacy.secure_sum.setup import Message, SumSetup, places, taken
from phalanx.privacy.secure_sum.shamir import SHARE_BYTES, split_secret

Kept = Mapping[str, Tensor]
"""What a client keeps from phase to phase, secrets included; it never leaves the client."""

Answer = tuple[Message, Kept]
"""What a client sends, and what it keeps."""

PHASES = ("advertise", "share", "mask", "unmask")
"""Phases of a secure sum, in order."""


@dataclass(frozen=True)
class SumClient:
    """Client of a secure sum, by its place among the clients.

    It tells nobody what would open its vector alone: it masks for `threshold` clients or more, it
    answers one request to unmask, and then reveals of every other client a share of one secret or
    of the other, never of both.

    Cost: `n d` words of key stream, two exchanges of keys and two polynomials of n values.
    Source: Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal and Seth, "Practical
    Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017 (Figure 4). Digests of
    shares are our own; signatures and the consistency check of the paper are not in it.
    """

    setup: SumSetup = SumSetup()  # noqa: RUF009 - frozen
    """The public parameters."""

    place: int = 0
    """Which client this is."""

    entropy: Entropy = system_entropy
    """The source of its secrets."""

    def __post_init__(self) -> None:
        if not 0 <= self.place < self.setup.num_clients:
            raise ValueError(
                f"place must be from 0 to {self.setup.num_clients - 1}, got {self.place}"
            )

    def answer(self, phase: str, request: Message, kept: Kept) -> Answer:
        """What the client sends in a phase, and what it keeps.

        In the last but one, `kept["words"]` is the vector: int32 or int64, modulo 2^bits.

        Raises:
            WireError: if the request is not what it must be, or comes out of turn.
            RequestRefusedError: if the answer would betray somebody.
        """
        if phase not in PHASES:
            raise WireError(f"message must be of a phase, {PHASES}, got {phase!r}")
        found: Answer = getattr(self, f"_{phase}")(request, dict(kept))
        return found

    def _advertise(self, request: Message, kept: dict[str, Tensor]) -> Answer:
        """Public keys: one to seal shares by, one to agree on masks by."""
        taken(request)
        _refuse("asked" in kept, "its vector is in a sum that was opened")
        secrets = [self.entropy(KEY_BYTES) for _ in range(2)]
        advert = self.setup.tag(self.place) + b"".join(SecretKey(one).public for one in secrets)
        fresh = {"words": kept["words"], "advert": as_tensor(advert)}
        fresh |= {"sealing": as_tensor(secrets[0]), "masking": as_tensor(secrets[1])}
        return {"advert": fresh["advert"]}, fresh

    def _share(self, request: Message, kept: dict[str, Tensor]) -> Answer:
        """Shares of the self-mask's key and of the secret mask key, sealed for every other."""
        _require_kept(kept, "advert")
        _refuse("masked" in kept, "it masked its vector already")
        n, t = self.setup.num_clients, self.setup.needed
        who, adverts = taken(
            request,
            clients=(torch.int64, (None,)),
            adverts=(torch.uint8, (None, wire.ADVERT_BYTES)),
        )
        present = places(who, n)
        if len(present) != len(adverts):
            raise WireError("message must hold an advertisement of every client")
        _refuse(len(present) < t, f"there are {len(present)} clients, below the threshold {t}")
        own = present.index(self.place) if self.place in present else -1
        _refuse(own < 0 or not adverts[own].equal(kept["advert"]), "its keys were changed")
        known = {one: as_bytes(row) for one, row in zip(present, adverts, strict=True)}
        keys = {_sealing(advert) for advert in known.values()}
        keys |= {_masking(advert) for advert in known.values()}
        _refuse(len(keys) < 2 * len(present), "two clients have one key")
        self_key = self.entropy(KEY_BYTES)
        shares = zip(
            split_secret(self_key, t, n, self.entropy),
            split_secret(as_bytes(kept["masking"]), t, n, self.entropy),
            strict=True,
        )
        dealt = torch.zeros(n, wire.DEAL_BYTES, dtype=torch.uint8)
        sealing = SecretKey(as_bytes(kept["sealing"]))
        for other, pair in enumerate(shares):
            if other not in known:
                continue
            text = b"".join(pair)
            if other == self.place:
                kept["own_pair"] = as_tensor(text)
                sealed = bytes(wire.DEAL_BYTES - 2 * wire.DIGEST_BYTES)
            else:
                purpose = self.setup.purpose("shares", self.place, other)
                key = sealing.agree(_sealing(known[other]), purpose)
                sealed = seal(key, self.entropy(12), text, purpose)
            dealt[other] = as_tensor(sealed + _digests(self.setup, self.place, other, text))
        commitment = digest(self.setup.purpose("self-mask", self.place), self_key)
        kept |= {"clients": who.clone(), "adverts": adverts.clone(), "self": as_tensor(self_key)}
        return {"dealt": dealt, "commitment": as_tensor(commitment)}, kept

    def _mask(self, request: Message, kept: dict[str, Tensor]) -> Answer:
        """The masked vector, and of whom shares cannot be read or are not those that were dealt."""
        _require_kept(kept, "self")
        who, dealt = taken(
            request,
            clients=(torch.int64, (None,)),
            dealt=(torch.uint8, (None, wire.DEAL_BYTES)),
        )
        present = places(who, self.setup.num_clients)
        if len(present) != len(dealt):
            raise WireError("message must hold what every client dealt")
        advertised = kept["clients"].tolist()
        _refuse(not set(present) <= set(advertised), "clients came after keys were advertised")
        _refuse(self.place not in present, "it is left out")
        t = self.setup.needed
        _refuse(len(present) < t, f"there are {len(present)} clients, below the threshold {t}")
        if "masked" in kept:  # the server lost the answer, perhaps: it gets no other
            _refuse(not kept["masked"].equal(who), "it masked its vector for other clients already")
        adverts = dict(zip(advertised, map(as_bytes, kept["adverts"]), strict=True))
        held = torch.zeros(self.setup.num_clients, wire.PAIR_BYTES, dtype=torch.uint8)
        unreadable, sealing = [], SecretKey(as_bytes(kept["sealing"]))
        for other, row in zip(present, dealt, strict=True):
            if other == self.place:
                pair: bytes | None = as_bytes(kept["own_pair"])
            else:
                pair = self._pair(other, as_bytes(row), sealing, _sealing(adverts[other]))
            if pair is None:
                unreadable.append(other)
            else:
                held[other] = as_tensor(pair)
        masked = kept["words"].clone()
        masking = SecretKey(as_bytes(kept["masking"]))
        add_mask(masked, as_bytes(kept["self"]), 1)
        for other in present:
            if other != self.place:
                key = pair_key(self.setup, masking, _masking(adverts[other]), self.place, other)
                add_mask(masked, key, 1 if other < self.place else -1)
        failed = torch.tensor(unreadable, dtype=torch.int64)
        kept |= {"masked": who.clone(), "held": held, "unreadable": failed}
        return {"masked": masked, "unreadable": failed}, kept

    def _pair(self, other: int, row: bytes, sealing: SecretKey, advertised: bytes) -> bytes | None:
        """The shares that another client dealt to this one; None if they are none."""
        purpose = self.setup.purpose("shares", other, self.place)
        try:
            key = sealing.agree(advertised, purpose)
        except WireError:
            return None
        split = len(row) - 2 * wire.DIGEST_BYTES
        text = unseal(key, row[:split], purpose)
        fits = text is not None and _digests(self.setup, other, self.place, text) == row[split:]
        return text if fits else None

    def _unmask(self, request: Message, kept: dict[str, Tensor]) -> Answer:
        """Shares: of self-masks of those whose vectors arrived, of mask keys of the others."""
        _require_kept(kept, "held")
        told = taken(request, arrived=(torch.int64, (None,)), dropped=(torch.int64, (None,)))
        arrived, dropped = (places(one, self.setup.num_clients) for one in told)
        both = sorted({*arrived} & {*dropped})
        _refuse(bool(both), f"both secrets of clients {both} are asked for")
        everybody, t = set(kept["masked"].tolist()), self.setup.needed
        _refuse(not {*arrived, *dropped} <= everybody, "clients are named that it does not know of")
        _refuse(len(arrived) < t, f"{len(arrived)} clients are left, below the threshold {t}")
        _refuse(self.place in dropped, "it is named as dropped out, and is there")
        asked = torch.tensor([*arrived, -1, *dropped])
        if "asked" in kept:
            _refuse(not kept["asked"].equal(asked), "it answered another request already")
        held = kept["held"]
        shares = [held[one, :SHARE_BYTES] for one in arrived]
        shares += [held[one, SHARE_BYTES:] for one in dropped]
        return {"shares": torch.stack(shares)}, {**kept, "asked": asked}


def pair_key(setup: SumSetup, secret: SecretKey, public: bytes, one: int, other: int) -> bytes:
    """The key of the mask of a pair of clients, by the secret mask key of either.

    Raises:
        WireError: if the public key is none.
    """
    return secret.agree(public, setup.purpose("mask", *sorted((one, other))))


def _digests(setup: SumSetup, dealer: int, holder: int, pair: bytes) -> bytes:
    """A digest of each share of a pair, by which the server knows it again."""
    return b"".join(
        share_digest(setup, dealer, holder, kind, pair[kind * SHARE_BYTES :][:SHARE_BYTES])
        for kind in range(2)
    )


def share_digest(setup: SumSetup, dealer: int, holder: int, kind: int, share: bytes) -> bytes:
    """The digest of a share: kind 0 of the self-mask's key, 1 of the secret mask key."""
    return digest(setup.purpose("share", dealer, holder, kind), share)


def _sealing(advert: bytes) -> bytes:
    return advert[wire.TAG_BYTES : wire.TAG_BYTES + KEY_BYTES]


def _masking(advert: bytes) -> bytes:
    return advert[wire.TAG_BYTES + KEY_BYTES :]


def _require_kept(kept: Mapping[str, Tensor], name: str) -> None:
    if name not in kept:
        raise WireError("message must come in turn: the phase before it is not done")


def _refuse(betrays: bool, reason: str) -> None:
    if betrays:
        raise RequestRefusedError(f"a client refuses the server's request: {reason}")
