"""Servers of secure aggregation over sockets."""

import subprocess
import threading
import time
from contextlib import ExitStack, closing

import pytest
import torch

from phalanx.aggregation import Krum, Mean, MinimumDiameterAveraging, MultiKrum
from phalanx.errors import DecodeError, ServerLostError
from phalanx.privacy import (
    Dealer,
    MalformedMessageError,
    ModelServer,
    Peer,
    RoundOverError,
    SecureClient,
    SecureSetup,
    UnexpectedMessageError,
    Uploader,
    WorkerServer,
    fresh_keys,
)
from phalanx.privacy.secure_aggregation import messages as wire
from phalanx.privacy.secure_aggregation import transport
from phalanx.privacy.secure_aggregation.messages import (
    DealRequest,
    ModelServerDeal,
    OpenRequest,
    OpenRound,
    Participants,
    Receipt,
    SeedShare,
    VectorShare,
)

grpc = pytest.importorskip("grpc")
SETUP = SecureSetup(num_workers=6, dim=200_000)  # more than one chunk
SMALL = SecureSetup(num_workers=6, dim=50)


class Lab:
    """Dealer and servers in this process, clients that connect to them."""

    def __init__(self, stack, setup=SMALL, rule=None, timeout_s=5.0, **secrets):
        rule = rule or MultiKrum(1)
        self.setup, self.keys = setup, fresh_keys(setup)
        server, channel = secrets.get("server"), secrets.get("channel")
        self.credentials = channel

        def opened(thing):
            return stack.enter_context(closing(thing))

        self.dealer = opened(Dealer(setup, self.keys["dealer"], credentials=server))
        plain = isinstance(rule, Mean)
        self.worker_server = opened(
            WorkerServer(
                setup,
                rule,
                self.keys["worker server"],
                None if plain else self.peer("dealer", self.dealer, "worker server"),
                timeout_s=timeout_s,
                credentials=server,
            )
        )
        self.opened = opened
        self.start = lambda: opened(
            ModelServer(
                setup,
                self.keys["model server"],
                self.peer("worker server", self.worker_server, "model server"),
                None if plain else self.peer("dealer", self.dealer, "model server"),
                timeout_s=2 * timeout_s,
                credentials=server,
            )
        )
        self.model_server = self.start()

    def peer(self, server, running, name):
        return Peer(running.address, self.keys[server][name], self.credentials)

    def peers(self, worker):
        name = f"worker {worker}"
        return (
            self.peer("model server", self.model_server, name),
            self.peer("worker server", self.worker_server, name),
        )

    def uploader(self, worker):
        client = SecureClient(self.setup, worker)
        return self.opened(Uploader(client, *self.peers(worker)))

    def lines(self, worker):
        return [self.opened(transport.Connection(self.setup, peer)) for peer in self.peers(worker)]


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def messages(setup, seed=0):
    return torch.randn(
        setup.num_workers, setup.dim, generator=torch.Generator().manual_seed(seed)
    ).div(setup.dim**0.5)


def send(lab, rows, round=0, workers=None):
    for worker in range(len(rows)) if workers is None else workers:
        lab.uploader(worker).send(rows[worker], round, timeout_s=5.0)


def raw(peer, data, chunk=1000):
    """Sends bytes that no client of ours would."""
    with grpc.insecure_channel(peer.address) as channel:
        call = channel.stream_stream("/phalanx.SecureAggregation/Exchange")
        chunks = iter([data[i : i + chunk] for i in range(0, len(data), chunk)])
        with pytest.raises(grpc.RpcError) as error:
            list(call(chunks, timeout=5, metadata=(("phalanx-key", peer.key),)))
    return error.value.code()


@pytest.mark.parametrize("setup", [SMALL, SETUP], ids=repr)
def test_servers_give_what_the_rule_gives_in_the_clear(stack, setup):
    lab = Lab(stack, setup)
    for round in range(2 if setup is SMALL else 1):
        rows = messages(setup, round)
        rows[4] *= 40
        send(lab, rows, round)
        value = lab.model_server.aggregate(deadline_s=5.0)
        torch.testing.assert_close(value.float(), MultiKrum(1)(rows), atol=setup.unit, rtol=0)
        assert lab.worker_server.verdict.suspects.tolist() == [False] * 4 + [True, False]


def test_the_plain_mean_needs_no_dealer(stack):
    lab = Lab(stack, rule=Mean())
    rows = messages(SMALL)
    send(lab, rows)
    value = lab.model_server.aggregate(deadline_s=5.0)
    torch.testing.assert_close(value.float(), rows.mean(dim=0), atol=SMALL.unit, rtol=0)


def test_who_reached_one_server_only_is_left_out(stack):
    lab = Lab(stack, rule=MinimumDiameterAveraging(1), timeout_s=0.4)
    rows = messages(SMALL)
    send(lab, rows, workers=range(4))
    one = SecureClient(SMALL, 4).share(rows[4], 0).for_model_server
    other = SecureClient(SMALL, 5).share(rows[5], 0).for_worker_server
    assert lab.lines(4)[0].ask(one, Receipt, 5.0) == Receipt(0)
    assert lab.lines(5)[1].ask(other, Receipt, 5.0) == Receipt(0)
    value = lab.model_server.aggregate(deadline_s=0.2)
    expected = MinimumDiameterAveraging(1)(rows[:4])
    torch.testing.assert_close(value.float(), expected, atol=SMALL.unit, rtol=0)
    assert not lab.worker_server.verdict.suspects[4:].any()


def test_nonsense_marks_its_sender_and_stops_nobody(stack):
    lab = Lab(stack, rule=MinimumDiameterAveraging(2), timeout_s=1.0)
    rows = messages(SMALL)
    send(lab, rows, workers=range(4))
    good = wire.pack(SecureClient(SMALL, 4).share(rows[4], 0).for_worker_server, SMALL)
    malformed = grpc.StatusCode.INVALID_ARGUMENT
    assert raw(lab.peers(4)[1], good[:-1]) == malformed
    assert raw(lab.peers(4)[1], good + b"0") == malformed
    assert raw(lab.peers(4)[1], b"") == malformed
    assert raw(lab.peers(4)[1], wire.pack(Participants(0, (), ()), SMALL)) == malformed
    assert raw(lab.peers(4)[1], good * 10_000, chunk=len(good)) == malformed
    line = lab.lines(5)[1]  # speaks for another, then twice
    share = SecureClient(SMALL, 5).share(rows[5], 0).for_worker_server
    line.ask(share._replace(worker=0), Receipt, 5.0)
    value = lab.model_server.aggregate(deadline_s=0.2)
    assert lab.worker_server.verdict.suspects[4:].all()
    assert lab.worker_server.verdict.weights[4:].tolist() == [0, 0]
    torch.testing.assert_close(value.float(), rows[:4].mean(dim=0), atol=SMALL.unit, rtol=0)


def test_a_second_share_marks_its_sender_and_the_same_again_does_not(stack):
    lab = Lab(stack)
    rows = messages(SMALL)
    send(lab, rows)
    for worker in (2, 3):
        seed, share = SecureClient(SMALL, worker).share(rows[worker], 1)
        one, other = lab.lines(worker)
        other.ask(share, Receipt, 5.0)
        other.ask(share if worker == 2 else share._replace(values=share.values + 1), Receipt, 5.0)
        one.ask(seed, Receipt, 5.0)
    lab.model_server.aggregate(deadline_s=5.0)
    send(lab, rows, 1, workers=[0, 1, 4, 5])
    lab.model_server.aggregate(deadline_s=5.0)
    verdict = lab.worker_server.verdict
    assert verdict.suspects[3]
    assert verdict.weights[3] == 0
    assert not verdict.dropped[2]


def test_strangers_are_turned_away_and_mark_nobody(stack):
    lab = Lab(stack)
    rows = messages(SMALL)
    send(lab, rows)
    one, other = lab.peers(0)
    data = wire.pack(SecureClient(SMALL, 0).share(rows[0], 0).for_worker_server, SMALL)
    for peer in (other._replace(key="x"), other._replace(key=""), other._replace(key=one.key)):
        assert raw(peer, data) == grpc.StatusCode.UNAUTHENTICATED
    lab.model_server.aggregate(deadline_s=5.0)
    assert not lab.worker_server.verdict.dropped.any()


def test_late_and_early_shares_are_told_so(stack):
    lab = Lab(stack)
    rows = messages(SMALL)
    send(lab, rows)
    lab.model_server.aggregate(deadline_s=5.0)
    with pytest.raises(RoundOverError):
        lab.uploader(0).send(rows[0], 0, timeout_s=5.0)
    with pytest.raises(UnexpectedMessageError, match="not open yet"):
        lab.uploader(0).send(rows[0], 7, timeout_s=0.3)


def test_a_client_that_dies_while_it_sends_is_just_missing(stack):
    lab = Lab(stack, timeout_s=2.0)
    rows = messages(SMALL)
    send(lab, rows, workers=range(5))
    peer = lab.peers(5)[1]
    data = wire.pack(SecureClient(SMALL, 5).share(rows[5], 0).for_worker_server, SMALL)
    with grpc.insecure_channel(peer.address) as channel:
        call = channel.stream_stream("/phalanx.SecureAggregation/Exchange")

        def half():
            yield data[:100]
            time.sleep(0.3)
            answer.cancel()
            yield data[100:200]

        answer = call(half(), metadata=(("phalanx-key", peer.key),))
        with pytest.raises(grpc.RpcError):
            list(answer)
    value = lab.model_server.aggregate(deadline_s=0.5)
    torch.testing.assert_close(value.float(), MultiKrum(1)(rows[:5]), atol=SMALL.unit, rtol=0)
    assert not lab.worker_server.verdict.suspects[5]


def test_one_at_a_time_and_not_for_ever(stack):
    lab = Lab(stack, timeout_s=0.5)
    peer = lab.peers(5)[1]
    share = SecureClient(SMALL, 5).share(messages(SMALL)[5], 0).for_worker_server
    stop = threading.Event()

    def slow():
        yield wire.pack(share, SMALL)[:100]
        stop.wait(5)

    with grpc.insecure_channel(peer.address) as channel:
        call = channel.stream_stream("/phalanx.SecureAggregation/Exchange")
        answer = call(slow(), metadata=(("phalanx-key", peer.key),))
        time.sleep(0.2)
        with pytest.raises(UnexpectedMessageError, match="sending something else"):
            lab.lines(5)[1].ask(share, Receipt, 5.0)
        with pytest.raises(grpc.RpcError) as error:
            list(answer)
        assert error.value.code() == grpc.StatusCode.CANCELLED
        stop.set()
    assert heard_at_last(lab.lines(5)[1], share) == Receipt(0)


def heard_at_last(line, share):
    """The answer to a message, once the server has noticed that the call before it is over."""
    until = time.monotonic() + 5.0
    while True:
        try:
            return line.ask(share, Receipt, 5.0)
        except UnexpectedMessageError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def test_too_few_workers_end_the_round_and_not_the_servers(stack):
    lab = Lab(stack, rule=Krum(1), timeout_s=0.3)
    rows = messages(SMALL)
    with pytest.raises(DecodeError, match="no worker's shares"):
        lab.model_server.aggregate(deadline_s=0.1)
    send(lab, rows, 1, workers=[0, 1])
    with pytest.raises(DecodeError, match="too few shares"):
        lab.model_server.aggregate(deadline_s=0.1)
    send(lab, rows, 2)
    value = lab.model_server.aggregate(deadline_s=5.0)
    torch.testing.assert_close(value.float(), Krum(1)(rows), atol=SMALL.unit, rtol=0)


@pytest.mark.parametrize("dead", ["dealer", "worker_server"])
def test_a_dead_server_is_named_in_time(stack, dead):
    lab = Lab(stack, timeout_s=1.0)
    send(lab, messages(SMALL))
    getattr(lab, dead).close()
    start = time.monotonic()
    with pytest.raises(ServerLostError, match=getattr(lab, dead).address):
        lab.model_server.aggregate(deadline_s=1.0)
    assert time.monotonic() - start < 5


def test_the_worker_server_notices_a_silent_model_server(stack):
    lab = Lab(stack, timeout_s=0.3)
    send(lab, messages(SMALL), workers=range(5))
    leader = stack.enter_context(
        closing(
            transport.Connection(
                SMALL, lab.peer("worker server", lab.worker_server, "model server")
            )
        )
    )
    leader.ask(Participants(0, tuple(range(5)), ()), Participants, 5.0)
    lab.worker_server.check()
    time.sleep(0.5)
    with pytest.raises(ServerLostError, match="said nothing"):
        lab.worker_server.check()
    lab.worker_server.check()


def test_masks_are_dealt_once(stack):
    lab = Lab(stack)
    line = lab.opened(transport.Connection(SMALL, lab.peer("dealer", lab.dealer, "model server")))
    line.ask(DealRequest(3), ModelServerDeal, 5.0)
    for round in (3, 2):
        with pytest.raises(transport.ReusedRandomnessError):
            line.ask(DealRequest(round), ModelServerDeal, 5.0)
    with pytest.raises(MalformedMessageError):
        line.ask(SeedShare(4, 0, bytes(32)), Receipt, 5.0)


def test_a_model_server_started_anew_goes_on_where_the_last_one_stopped(stack, subtests):
    for rule in (MultiKrum(1), Mean()):
        with subtests.test(repr(rule)):
            lab = Lab(stack, rule=rule)
            rows = messages(SMALL)
            for round in range(3):
                send(lab, rows, round)
                lab.model_server.aggregate(deadline_s=5.0)
            lab.model_server.close()
            lab.model_server = lab.start()
            assert lab.model_server.round == 3
            send(lab, rows, 3)
            start = time.monotonic()
            value = lab.model_server.aggregate(deadline_s=20.0)
            assert time.monotonic() - start < 5
            torch.testing.assert_close(value.float(), rule(rows), atol=SMALL.unit, rtol=0)


def test_a_round_that_was_lost_with_its_model_server_is_over(stack):
    """Half of its shares are gone, and new ones would contradict those of the worker server."""
    lab = Lab(stack)
    rows = messages(SMALL)
    send(lab, rows)
    lab.model_server.aggregate(deadline_s=5.0)
    send(lab, rows, 1, workers=range(4))
    lab.model_server.close()
    lab.model_server = lab.start()
    assert lab.model_server.round == 2
    with pytest.raises(RoundOverError):
        lab.uploader(4).send(rows[4], 1, timeout_s=5.0)
    send(lab, rows, 2)
    value = lab.model_server.aggregate(deadline_s=5.0)
    torch.testing.assert_close(value.float(), MultiKrum(1)(rows), atol=SMALL.unit, rtol=0)
    assert not lab.worker_server.verdict.dropped.any()


def test_shares_that_come_before_the_first_model_server_count(stack):
    lab = Lab(stack)
    lab.worker_server._led = False  # as if nobody had led it yet
    lab.model_server.close()
    rows = messages(SMALL)
    shares = [SecureClient(SMALL, worker).share(rows[worker], 0) for worker in range(6)]
    lines = [lab.opened(transport.Connection(SMALL, lab.peers(worker)[1])) for worker in range(6)]
    for line, (_, share) in zip(lines, shares, strict=True):
        line.ask(share, Receipt, 5.0)
    lab.model_server = lab.start()
    assert lab.model_server.round == 0
    for worker, (seed, _) in enumerate(shares):
        lab.lines(worker)[0].ask(seed, Receipt, 5.0)
    value = lab.model_server.aggregate(deadline_s=5.0)
    torch.testing.assert_close(value.float(), MultiKrum(1)(rows), atol=SMALL.unit, rtol=0)


def test_a_model_server_says_at_once_who_is_not_there(stack):
    lab = Lab(stack)
    lab.worker_server.close()
    with pytest.raises(ServerLostError, match=lab.worker_server.address):
        lab.start()


def test_only_the_model_server_opens_rounds(stack):
    lab = Lab(stack)
    dealing = lab.opened(
        transport.Connection(SMALL, lab.peer("dealer", lab.dealer, "worker server"))
    )
    for line in (dealing, lab.lines(2)[1]):
        with pytest.raises(MalformedMessageError, match="may not send OpenRequest"):
            line.ask(OpenRequest(7), OpenRound, 5.0)


def test_keys_by_which_somebody_is_taken_for_another_are_refused(stack, subtests):
    keys = fresh_keys(SMALL)
    good, key = keys["dealer"], "k" * 22
    model, worker = good["model server"], good["worker server"]
    for table, rule in (
        ({}, "got none for model server, worker server"),
        (
            {"model server": model},
            "keys must hold one for every caller, got none for worker server",
        ),
        ({**good, "worker 0": key}, "got one for worker 0"),
        ({**good, "Worker server": key}, "got one for Worker server"),
        ({**good, "model server": ""}, "the key of model server must have at least 22 .* got 0"),
        ({**good, "model server": "k" * 21}, "the key of model server must .* got 21"),
        ({**good, "model server": " " * 22}, "the key of model server must .* no spaces"),
        ({**good, "worker server": f"{worker} "}, "the key of worker server must .* no spaces"),
        ({**good, "worker server": f"{worker}\n"}, "the key of worker server must .* no spaces"),
        ({**good, "worker server": "é" * 30}, "the key of worker server must .* ASCII"),
        ({**good, "worker server": model}, "got one for both model server and worker server"),
    ):
        with subtests.test(rule), pytest.raises(ValueError, match=rule) as caught:
            Dealer(SMALL, table)
        assert model not in str(caught.value)
        assert worker not in str(caught.value)
    taken = Peer("localhost:1", keys["worker server"]["model server"])
    with pytest.raises(ValueError, match="both model server and this server at the dealer"):
        WorkerServer(SMALL, MultiKrum(1), keys["worker server"], taken)
    same = Peer("localhost:2", model)
    with pytest.raises(ValueError, match="this server at the worker server and this server at the"):
        ModelServer(SMALL, keys["model server"], same, same)
    with pytest.raises(ValueError, match="the key at localhost:1 must have at least 22 characters"):
        transport.Connection(SMALL, Peer("localhost:1", ""))


def test_others_may_not_listen_by_accident(subtests):
    for address in ("0.0.0.0:0", "example.org:443", "[::]:0"):
        with subtests.test(address):
            with pytest.raises(ValueError, match="credentials"):
                Dealer(SMALL, {}, address)
            with pytest.raises(ValueError, match="credentials"):
                transport.Connection(SMALL, Peer(address, "key"))


def test_an_address_that_is_taken_is_named(stack):
    lab = Lab(stack)
    with pytest.raises(ValueError, match=f"must be free to listen at, got {lab.dealer.address}"):
        Dealer(SMALL, lab.keys["dealer"], lab.dealer.address)


def test_encrypted(stack, tmp_path):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key", "-out", "cert"]
    try:
        subprocess.run([*command.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    key, cert = ((tmp_path / name).read_bytes() for name in ("key", "cert"))
    lab = Lab(
        stack,
        server=grpc.ssl_server_credentials([(key, cert)]),
        channel=grpc.ssl_channel_credentials(cert),
    )
    rows = messages(SMALL)
    send(lab, rows)
    value = lab.model_server.aggregate(deadline_s=5.0)
    torch.testing.assert_close(value.float(), MultiKrum(1)(rows), atol=SMALL.unit, rtol=0)
    stranger = lab.opened(transport.Connection(SMALL, lab.peers(0)[1]._replace(credentials=None)))
    with pytest.raises(ServerLostError):
        stranger.ask(VectorShare(1, 0, torch.zeros(50).long()), Receipt, 2.0)
