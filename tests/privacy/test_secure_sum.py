"""Secure sums: exact, whoever drops out; closed below the threshold; and nobody is believed."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

pytest.importorskip("cryptography", reason="pip install 'phalanx[secure]'")

from phalanx.errors import RequestRefusedError, SecureSumError, WireError
from phalanx.privacy import (
    SumClient,
    SumRange,
    SumSetup,
    run_secure_sum,
    secure_sum,
    seeded_entropy,
)
from phalanx.privacy.secure_sum.client import PHASES
from phalanx.privacy.secure_sum.keys import SecretKey
from phalanx.privacy.secure_sum.shamir import PRIME, combine_shares, split_secret


def words(num_clients, width=50, bits=32, seed=0):
    draws = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-(2**62), 2**62, (num_clients, width), generator=draws) * 2 + 1
    return drawn.to(torch.int32) if bits == 32 else drawn


def added(rows, clients):
    return rows[list(clients)].sum(dim=0, dtype=rows.dtype)


def test_any_threshold_of_shares_gives_the_secret_and_fewer_fit_every_secret():
    secret = bytes(range(100, 132))
    for n, t in ((1, 1), (2, 2), (5, 3), (6, 6)):
        shares = split_secret(secret, t, n)
        for size in range(1, n + 1):
            for places in itertools.combinations(range(n), size):
                found = combine_shares({one: shares[one] for one in places})
                assert (found == secret) == (size >= t)
    # With two shares of a threshold of three, a third exists for every secret: they say nothing.
    shares = split_secret(secret, 3, 3, seeded_entropy(0))
    points = [(0, 5), *((i + 1, int.from_bytes(shares[i], "little")) for i in range(2))]
    third = sum(
        value
        * (3 - points[(k + 1) % 3][0])
        * (3 - points[(k + 2) % 3][0])
        * pow((point - points[(k + 1) % 3][0]) * (point - points[(k + 2) % 3][0]), -1, PRIME)
        for k, (point, value) in enumerate(points)
    )
    forged = {0: shares[0], 1: shares[1], 2: (third % PRIME).to_bytes(33, "little")}
    assert combine_shares(forged) == (5).to_bytes(32, "little")


def test_the_exact_sum_whoever_drops_out_in_any_phase(subtests):
    for bits, phase in itertools.product((32, 64), PHASES):
        rows, setup = words(6, bits=bits), SumSetup(6, 50, threshold=4, bits=bits)
        for gone in ((), (0,), (2, 5)):
            with subtests.test(f"{bits} bits, {gone} before {phase}"):
                found = secure_sum(rows, setup, {phase: gone})
                # Whose masked vector arrived is in the sum, even if nothing is heard afterwards.
                lasting = [one for one in range(6) if phase == "unmask" or one not in gone]
                assert found.clients == tuple(lasting)
                assert found.total.equal(added(rows, lasting))
                assert not found.marked


@given(st.integers(2, 7), st.integers(0, 2**30), st.data())
def test_the_exact_sum_or_none(num_clients, seed, data):
    """Any drop-outs: the sum of those whose vector arrived, or an error, by the threshold."""
    threshold = data.draw(st.integers(num_clients // 2 + 1, num_clients))
    when = data.draw(st.lists(st.sampled_from([*PHASES, None, None]), min_size=num_clients))
    gone = {phase: [c for c in range(num_clients) if when[c] == phase] for phase in PHASES}
    rows = words(num_clients, 7, seed=seed)
    setup = SumSetup(num_clients, 7, threshold)
    if num_clients - sum(map(len, gone.values())) < threshold:
        with pytest.raises(SecureSumError, match="threshold must be reached"):
            secure_sum(rows, setup, gone, seeded_entropy(seed))
        return
    found = secure_sum(rows, setup, gone, seeded_entropy(seed))
    lasting = [c for c in range(num_clients) if when[c] in (None, "unmask")]
    assert found.clients == tuple(lasting)
    assert found.total.equal(added(rows, lasting))


def test_nothing_is_opened_with_one_client_too_few():
    for phase in PHASES:
        with pytest.raises(SecureSumError, match="threshold must be reached: 4 of 6") as caught:
            secure_sum(words(6), SumSetup(6, 50, threshold=4), {phase: [1, 3, 4]})
        assert (caught.value.workers, caught.value.bound) == ([1, 3, 4], 2)


class Federation:
    """Clients that answer, with tampering of requests and replies, and all that was sent."""

    def __init__(self, rows, setup, replies=None, requests=None):
        self.rows, self.setup, self.sent = rows, setup, []
        self.kept = [{"words": row} for row in rows]
        self.replies = replies or (lambda phase, place, message, attempt: message)
        self.requests = requests or (lambda phase, place, message: message)
        self.refused = {}

    def client(self, place, attempt=0):
        return SumClient(replace(self.setup, attempt=attempt), place)

    def ask(self, attempt, phase, requests):
        found = {}
        for place, request in requests.items():
            told = self.requests(phase, place, dict(request))
            try:
                answer, self.kept[place] = self.client(place, attempt).answer(
                    phase, told, self.kept[place]
                )
            except RequestRefusedError as error:
                self.refused[place] = str(error)
                continue
            answer = self.replies(phase, place, dict(answer), attempt)
            self.sent.append((phase, place, answer))
            if answer is not None:
                found[place] = answer
        return found

    def run(self):
        return run_secure_sum(self.setup, self.ask)


def masked(federation):
    return [message["masked"] for phase, _, message in federation.sent if phase == "mask"]


def test_masked_vectors_are_uniform_and_have_nothing_in_common():
    """Equal vectors of zeros under masks: bytes by chi-square, pairs by correlation."""
    rows = torch.zeros(4, 4096, dtype=torch.int32)
    federation = Federation(rows, SumSetup(4, 4096))
    assert federation.run().total.eq(0).all()
    seen = torch.stack(masked(federation))
    for row in seen:
        counts = torch.bincount(row.view(torch.uint8).long(), minlength=256)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert (seen.double().corrcoef() - torch.eye(4)).abs().max() < 0.08
    # A sum of fewer than all is uniform as well.
    counts = torch.bincount(added(seen, [0, 1, 2]).view(torch.uint8).long(), minlength=256)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_no_two_sums_have_a_mask_in_common():
    rows, seen = torch.zeros(3, 64, dtype=torch.int32), []
    for _ in range(2):
        federation = Federation(rows, SumSetup(3, 64))
        federation.run()
        seen += masked(federation)
    assert all(not one.equal(other) for one, other in itertools.combinations(seen, 2))


def lying(**changed):
    """A server's request that is not what it should be, in one phase."""

    def requests(phase, place, request):
        return changed[phase](place, request) if phase in changed else request

    return requests


def ids(*places):
    return torch.tensor(places, dtype=torch.int64)


LIES = {
    "both secrets of one client": (
        lying(unmask=lambda place, request: {**request, "dropped": ids((place + 1) % 5)}),
        "both secrets",
    ),
    "nearly all dropped out": (
        lying(
            unmask=lambda place, request: {
                "arrived": ids(place),
                "dropped": ids(*({*range(5)} - {place})),
            }
        ),
        "below the threshold",
    ),
    "you dropped out": (
        lying(
            unmask=lambda place, request: {
                "arrived": ids(*({*range(5)} - {place})),
                "dropped": ids(place),
            }
        ),
        "is there",
    ),
    "a client of nowhere": (
        lying(
            mask=lambda place, request: {
                "clients": request["clients"][request["clients"] != (place + 1) % 5],
                "dealt": request["dealt"][request["clients"] != (place + 1) % 5],
            }
        ),
        "does not know of",
    ),
    "two clients to mask for": (
        lying(
            mask=lambda place, request: {
                "clients": request["clients"][:2],
                "dealt": request["dealt"][:2],
            }
        ),
        "below the threshold|left out",
    ),
    "your keys are others": (
        lying(
            share=lambda place, request: {
                "clients": request["clients"],
                "adverts": request["adverts"].flip(0),
            }
        ),
        "keys were changed|one key",
    ),
    "the same client five times": (
        lying(
            share=lambda place, request: {
                "clients": request["clients"],
                "adverts": request["adverts"][place].expand(5, -1),
            }
        ),
        "one key",
    ),
}


def test_a_lying_server_is_refused(subtests):
    for name, (lie, reason) in LIES.items():
        with subtests.test(name):
            federation = Federation(words(5), SumSetup(5, 50, threshold=3), requests=lie)
            with pytest.raises(SecureSumError):
                federation.run()
            assert federation.refused
            for said in federation.refused.values():
                assert re.search(reason, said), said


def test_one_answer_to_a_request_and_none_to_another():
    """Asked again, a client says the same; asked otherwise, or for the vector anew, nothing."""
    setup = SumSetup(5, 50, threshold=3)
    federation = Federation(words(5), setup)
    asked = {}
    federation.requests = lambda phase, place, request: asked.setdefault((phase, place), request)
    assert federation.run().total.equal(added(federation.rows, range(5)))
    client, kept = federation.client(0), federation.kept[0]
    for phase in ("mask", "unmask"):
        before = next(m for p, place, m in federation.sent if (p, place) == (phase, 0))
        again, _ = client.answer(phase, asked[phase, 0], kept)
        assert all(again[name].equal(before[name]) for name in before)
    other = {"arrived": ids(0, 1, 2, 3), "dropped": ids(4)}
    with pytest.raises(RequestRefusedError, match="another request already"):
        client.answer("unmask", other, kept)
    fewer = {name: one[:4] for name, one in asked["mask", 0].items()}
    with pytest.raises(RequestRefusedError, match="other clients already"):
        client.answer("mask", fewer, kept)
    for phase, reason in (("share", "masked its vector"), ("advertise", "was opened")):
        with pytest.raises(RequestRefusedError, match=reason):
            federation.client(0, attempt=1).answer(phase, asked[phase, 0], kept)


def test_clients_read_no_nonsense():
    client = SumClient(SumSetup(5, 50), 0)
    fresh = {"words": words(1)[0]}
    for phase, request in (
        ("advertise", {"more": ids(1)}),
        ("share", {}),
        ("mask", {}),
        ("unmask", {"arrived": ids(0), "dropped": ids()}),
        ("guess", {}),
    ):
        with pytest.raises(WireError):
            client.answer(phase, request, fresh)
    _, kept = client.answer("advertise", {}, fresh)
    for who in (ids(0, 0, 1), ids(1, 0), ids(0, 7), ids(-1, 0), ids(0).float()):
        adverts = torch.zeros(len(who), 80, dtype=torch.uint8)
        with pytest.raises(WireError):
            client.answer("share", {"clients": who, "adverts": adverts}, kept)


def tampered(place, phase, change):
    """Replies of which one client's is another in one phase; in the first attempt alone."""

    def replies(now, who, message, attempt):
        return change(message) if (now, who, attempt) == (phase, place, 0) else message

    return replies


def flipped(name, row=None):
    def change(message):
        one = message[name].clone()
        where = one if row is None else one[row]
        where.view(-1)[-1] ^= 1
        return {**message, name: one}

    return change


def replayed(message):
    """The advertisement of the client in another sum."""
    other, _ = SumClient(SumSetup(5, 50, label="before"), 1).answer(
        "advertise", {}, {"words": ids()}
    )
    return other


def in_the_name_of_another(message):
    other, _ = SumClient(SumSetup(5, 50), 2).answer("advertise", {}, {"words": ids()})
    return other


def of_small_order(message):
    advert = message["advert"].clone()
    advert[16:48] = 0
    return {"advert": advert}


FORGED = {
    "advertise": [
        replayed,
        in_the_name_of_another,
        of_small_order,
        flipped("advert", slice(0, 1)),
        lambda message: {},
        lambda message: "nothing",
        lambda message: {"advert": message["advert"][:-1]},
        lambda message: {"advert": message["advert"].float()},
        lambda message: {**message, "more": ids(0)},
    ],
    "share": [
        lambda message: {**message, "dealt": message["dealt"][1:]},
        lambda message: {"dealt": message["dealt"]},
        lambda message: {**message, "commitment": message["commitment"].repeat(2)},
    ],
    "mask": [
        lambda message: {**message, "masked": message["masked"][1:]},
        lambda message: {**message, "masked": message["masked"].long()},
        lambda message: {**message, "masked": message["masked"].to("meta")},
        lambda message: {**message, "masked": message["masked"].to_sparse()},
        lambda message: {**message, "unreadable": ids(9)},
    ],
    "unmask": [
        flipped("shares"),
        lambda message: {"shares": message["shares"][:2]},
        lambda message: {"shares": message["shares"].flip(0)},
    ],
}


def test_what_is_forged_marks_its_sender_and_ends_nothing(subtests):
    for phase, forgeries in FORGED.items():
        for number, change in enumerate(forgeries):
            with subtests.test(f"{phase} {number}"):
                rows = words(5)
                federation = Federation(
                    rows, SumSetup(5, 50, threshold=3), tampered(1, phase, change)
                )
                found = federation.run()
                assert set(found.marked) == {1}
                lasting = [one for one in range(5) if phase == "unmask" or one != 1]
                assert found.clients == tuple(lasting)
                assert found.total.equal(added(rows, lasting))


def test_whoever_copies_a_key_is_left_out_with_its_owner_and_nobody_is_marked():
    """Which of two has it from the other cannot be known."""
    rows, seen = words(6), {}

    def replies(phase, place, message, attempt):
        if phase == "advertise":
            seen[place] = message["advert"]
            if place == 4:
                return {"advert": torch.cat([message["advert"][:16], seen[1][16:]])}
        return message

    found = Federation(rows, SumSetup(6, 50, threshold=4), replies).run()
    assert (found.clients, set(found.lost), found.marked) == ((0, 2, 3, 5), {1, 4}, {})
    assert found.total.equal(added(rows, found.clients))


def test_shares_that_cannot_be_read(subtests):
    """By all others, who complain; by one, whose word is not enough; and by none, in truth."""
    rows, setup = words(5), SumSetup(5, 50, threshold=3)

    def spoil(rows_of):
        def change(message):
            dealt = message["dealt"].clone()
            dealt[rows_of, 20] ^= 1
            return {**message, "dealt": dealt}

        return change

    with subtests.test("nobody can read them: begun anew, without a vote of confidence"):
        found = Federation(rows, setup, tampered(1, "share", spoil([0, 2, 3, 4]))).run()
        assert (found.clients, set(found.marked)) == ((0, 2, 3, 4), {1})
        assert found.total.equal(added(rows, found.clients))
    with subtests.test("a wrong digest is as bad"):
        for change in (flipped("dealt", slice(0, 1)), spoil([3])):
            found = Federation(rows, setup, tampered(1, "share", change)).run()
            assert (found.clients, found.marked) == ((0, 1, 2, 3, 4), {})
            assert found.total.equal(added(rows, range(5)))
    with subtests.test("two that complain of everybody frame nobody"):

        def complaining(phase, place, message, attempt):
            if phase == "mask" and place in (0, 3):
                return {**message, "unreadable": ids(*({*range(5)} - {place}))}
            return message

        found = Federation(rows, setup, complaining).run()
        assert not found.marked
        assert found.total.equal(added(rows, found.clients))


def test_shares_of_no_secret_void_the_sum_and_mark_the_dealer():
    """The dealer commits itself to another key than it deals: seen once all is revealed."""
    rows, setup = words(5), SumSetup(5, 50, threshold=3)
    found = Federation(rows, setup, tampered(1, "share", flipped("commitment"))).run()
    assert found.total is None
    assert set(found.marked) == {1}


def test_a_dropped_clients_key_must_be_the_one_that_it_advertised():
    rows, setup = words(5), SumSetup(5, 50, threshold=3)

    def requests(phase, place, request):
        if (phase, place) == ("share", 1):  # it deals another key than it advertised
            kept = federation.kept[1]
            federation.kept[1] = {**kept, "masking": torch.zeros(32, dtype=torch.uint8)}
        return request

    def replies(phase, place, message, attempt):
        return None if (phase, place) == ("mask", 1) else message

    federation = Federation(rows, setup, replies, requests)
    found = federation.run()
    assert found.total is None
    assert set(found.marked) == {1}


def test_a_server_with_fewer_friends_than_the_threshold_opens_nothing():
    """What a server and t - 1 clients hold of the others' secrets does not give them."""
    setup = SumSetup(5, 50, threshold=4)
    federation = Federation(words(5), setup)
    federation.run()
    for kind, name in ((slice(0, 33), "self"), (slice(33, 66), "masking")):
        secret = bytes(federation.kept[0][name].tolist())
        for friends, opens in (([1, 2, 3], False), ([1, 2, 3, 4], True)):
            pairs = {one: bytes(federation.kept[one]["held"][0, kind].tolist()) for one in friends}
            assert (combine_shares(pairs) == secret) == opens
    advert = bytes(federation.kept[0]["advert"].tolist())
    assert SecretKey(secret).public == advert[-32:]


def test_setups_that_hide_nothing_are_refused():
    for options, reason in (
        ({"num_clients": 1}, "num_clients must be at least 2"),
        ({"num_clients": 6, "threshold": 3}, "threshold must be from 4 to 6"),
        ({"num_clients": 6, "threshold": 7}, "threshold must be from 4 to 6"),
        ({"bits": 16}, "bits must be 32 or 64"),
        ({"width": -1}, "width must be at least 0"),
    ):
        with pytest.raises(ValueError, match=reason):
            SumSetup(**options)
    with pytest.raises(ValueError, match="place must be from 0 to 9"):
        SumClient(SumSetup(), 10)
    with pytest.raises(ValueError, match="words must be of torch"):
        secure_sum(words(3), SumSetup(3, 49))
    assert [SumSetup(n).needed for n in (2, 3, 6, 10, 100)] == [2, 3, 5, 7, 67]


@given(st.integers(1, 1000), st.floats(1e-6, 1e6), st.sampled_from([32, 64]))
def test_no_sum_wraps_and_half_a_unit_is_all_that_is_lost(num_clients, limit, bits):
    range_ = SumRange(num_clients, limit, bits)
    values = torch.tensor([limit, -limit, 2 * limit, limit / 3, 0.0], dtype=torch.float64)
    found, cut = range_.encode(values)
    assert cut == 1
    wanted = values.clamp(-limit, limit)
    assert ((range_.decode(found) - wanted).abs() <= range_.unit / 2 + 1e-15 * limit).all()
    assert num_clients * max(abs(one) for one in found.tolist()) < 2 ** (bits - 1)
    assert range_.unit <= 4 * limit / range_.largest


def test_ranges_without_room_are_refused():
    with pytest.raises(ValueError, match=r"bits must leave 8 bits .* got 32, which leave 7"):
        SumRange(2**24 + 2**23, 1.0, 32)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="finite"):
            SumRange().encode(torch.tensor([bad]))
