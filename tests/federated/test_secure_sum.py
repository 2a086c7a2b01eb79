"""Secure sums in federated rounds: the plain mean, on every engine the same, whoever drops out."""

import pytest
import torch
from torch import nn

from ddp.ranks import Ranks
from federated.federations import ALGORITHMS, ONE_BY_ONE, federation, run, same_secure_sums, weights
from phalanx.aggregation import CoordinateMedian, GeometricMedian
from phalanx.attacks import ALittleIsEnough, FixedWorkers, SignFlip
from phalanx.compression import TopK
from phalanx.errors import LedgerError, SecureSumError
from phalanx.federated import ClientPrivacy, FedAvg, FedDF, FedProx, Mime, Scaffold, SecureSum
from phalanx.privacy import DistributedNoise
from phalanx.stragglers import DelayModel
from phalanx.training import Local, Ray
from phalanx.transforms import Compressed, WorkerMomentum
from training.distributed_cases import on_server

pytest.importorskip("cryptography", reason="pip install 'phalanx[secure]'")

SECURE = SecureSum()
HALF = SecureSum(threshold=3)


def test_every_algorithm_as_by_the_plain_mean(subtests):
    """Up to the rounding of words; loss and bytes are told as well."""
    for algorithm in ALGORITHMS:
        if isinstance(algorithm, FedDF):
            continue
        with subtests.test(repr(algorithm)):
            options = {"clients_per_round": 3, "rounds": 2}
            plain = run(algorithm, **options)
            secure = run(algorithm, aggregation=SECURE, **options)
            assert (weights(plain) - weights(secure)).abs().max() < 2e-6
            for one, other in zip(plain.rounds, secure.rounds, strict=True):
                assert one["clients"] == other["clients"]
                assert (other["saturated"], other["missing"], other["suspects"]) == (0, {}, [])
                assert other["message_bytes"] > one["message_bytes"]


def test_the_weighted_mean_of_losses_and_updates():
    """Clients of 1 and 9 samples: the first counts a tenth."""
    clients = federation((1, 9))
    algorithm = FedAvg(epochs=1, batch_size=100)
    secure = run(algorithm, clients, rounds=1, aggregation=SecureSum(threshold=2))
    alone = [run(algorithm, [one], rounds=1) for one in clients]
    losses = [one.rounds[0]["loss"] for one in alone]
    assert secure.rounds[0]["loss"] == pytest.approx(0.1 * losses[0] + 0.9 * losses[1], abs=1e-5)
    wanted = 0.1 * weights(alone[0]) + 0.9 * weights(alone[1])
    assert torch.allclose(weights(secure), wanted, atol=1e-6)


def test_the_same_bits_again_and_with_longer_words():
    first = run(Scaffold(), aggregation=SECURE)
    assert weights(first).equal(weights(run(Scaffold(), aggregation=SECURE)))
    finer = run(Scaffold(), aggregation=SecureSum(bits=64))
    assert (weights(first) - weights(finer)).abs().max() < 2e-6
    assert finer.rounds[0]["message_bytes"] > first.rounds[0]["message_bytes"]


def test_numbers_that_are_cut_are_counted():
    found = run(FedAvg(lr=1.0), aggregation=SecureSum(limit=0.01))
    assert found.rounds[0]["saturated"] > 0


class Away(DelayModel):
    """Some workers are away in round 1."""

    def __init__(self, *workers):
        self.workers = list(workers)

    def at(self, step, num_workers, seed):
        away = torch.zeros(num_workers, dtype=torch.float64)
        if step == 1:
            away[self.workers] = torch.inf
        return away

    def draw(self, shape, generator):
        raise NotImplementedError


def test_who_drops_out_is_weighed_out_and_forgets_the_round(subtests):
    for algorithm in (FedAvg(), Scaffold()):
        with subtests.test(repr(algorithm)):
            engine = Local(chunk_size=1, delays=Away(1))
            plain = run(algorithm, engine=engine)
            secure = run(algorithm, engine=engine, aggregation=HALF)
            assert secure.rounds[1]["missing"] == {"1": "dead"}
            assert (weights(plain) - weights(secure)).abs().max() < 2e-6
    with pytest.raises(SecureSumError, match="threshold must be reached: 3 of 4 clients, got 2"):
        run(FedAvg(), engine=Local(delays=Away(1, 3)), aggregation=HALF)


def test_a_run_that_resumes_has_the_same_bits(tmp_path):
    for algorithm in (FedAvg(), Scaffold()):
        whole = run(algorithm, rounds=5, aggregation=SECURE)
        out = tmp_path / type(algorithm).__name__
        common = {"aggregation": SECURE, "out": out}
        run(algorithm, rounds=2, **common)
        assert weights(run(algorithm, rounds=5, resume=True, **common)).equal(weights(whole))
        with pytest.raises(ValueError, match="aggregation"):
            run(algorithm, rounds=6, resume=True, out=out, aggregation=SecureSum(threshold=3))


def test_worker_momentum_and_attacks_that_read_nothing_go_through_it():
    byzantine = {"attack": SignFlip(), "byzantine": FixedWorkers([0])}
    options = {"transforms": [WorkerMomentum(0.5)], **byzantine}
    plain, secure = run(FedAvg(), **options), run(FedAvg(), aggregation=SECURE, **options)
    assert (weights(plain) - weights(secure)).abs().max() < 2e-6


def test_what_needs_single_updates_is_refused(subtests):
    """The error names what stands for rules: the two servers."""
    for options, reason in (
        ({"rule": GeometricMedian(1)}, r"rule must be Mean\(\) under SecureSum.*SecureAggregation"),
        ({"rule": CoordinateMedian(1)}, r"rule must be Mean\(\)"),
        ({"transforms": [Compressed(TopK(0.5))]}, "transforms must keep messages as numbers"),
        ({"aggregation": SecureSum(threshold=2)}, "threshold must be from 3 to 4"),
        ({"aggregation": SecureSum(threshold=5)}, "threshold must be from 3 to 4"),
        ({"clients_per_round": 1}, "at least 2 clients in a round, got 1"),
        ({"aggregation": SecureSum(max_samples=11)}, "at least the 12 samples .* got 11"),
        ({"aggregation": "SecureSum"}, "aggregation must be a AggregationProtocol"),
        ({"aggregation": SecureSum(max_samples=2**30)}, "max_samples must be at most"),
    ):
        with subtests.test(repr(options)), pytest.raises(ValueError, match=reason):
            run(FedAvg(), **{"aggregation": SECURE, **options})
    with pytest.raises(ValueError, match="attack must not read messages"):
        run(
            FedAvg(),
            aggregation=SECURE,
            attack=ALittleIsEnough(),
            byzantine=FixedWorkers([0]),
        )
    with pytest.raises(ValueError, match="step must take the mean alone"):
        run(ALGORITHMS[-1], aggregation=SECURE)
    for options in ({"threshold": 1}, {"limit": 0.0}, {"bits": 16}, {"max_samples": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SecureSum(**options)


class Zero(nn.Module):
    """A model whose updates are zero: what is left is the noise."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(20_000))

    def forward(self, inputs):
        return inputs[:, :3] + 0.0 * self.weight.sum()


def test_noise_of_the_claimed_size_reaches_the_model(subtests):
    """All of it, and as much as is claimed where only the threshold lasts."""
    noise = DistributedNoise(clip_norm=0.5, noise_multiplier=2.0)
    for engine, number in ((Local(), 4), (Local(delays=Away(1)), 3)):
        with subtests.test(number):
            secure = SecureSum(threshold=3, noise=noise)
            found = run(FedAvg(), model=Zero, rounds=2, engine=engine, aggregation=secure)
            assert found.rounds[-1]["loss"] is None
            # Two rounds, the first with all four clients; a mean of so many.
            variance = sum((1.0 * (k / 3) ** 0.5 / k) ** 2 for k in (4, number))
            assert weights(found).std().item() == pytest.approx(variance**0.5, rel=0.03)


def test_updates_are_clipped_under_noise():
    """With next to no noise the mean of clipped updates."""
    noise = DistributedNoise(clip_norm=0.01, noise_multiplier=0.001)
    found = run(FedAvg(lr=1.0), rounds=1, aggregation=SecureSum(noise=noise))
    with torch.random.fork_rng():
        before = run(FedAvg(lr=1e-9), rounds=1)
    assert 0 < (weights(found) - weights(before)).norm() <= 0.01 * 1.05
    with pytest.raises(ValueError, match="weighted must be False"):
        run(FedAvg(weighted=True), aggregation=SecureSum(noise=noise))
    coarse = DistributedNoise(clip_norm=1.0, noise_multiplier=1e-8)
    with pytest.raises(ValueError, match="bits must be 64 for this noise"):
        run(FedAvg(), aggregation=SecureSum(noise=coarse))


def test_noise_is_told_with_its_epsilon_and_kept_in_a_ledger(tmp_path):
    noise = DistributedNoise(clip_norm=0.5, noise_multiplier=8.0, delta=1e-6)
    secure, folder = SecureSum(noise=noise), tmp_path / "run"
    told = run(FedAvg(), rounds=2, aggregation=secure, out=folder).result["privacy"]
    assert told.startswith(f"({noise.epsilon(2, 1e-6):.4g}, 1e-06)-differential privacy")
    assert "add or remove one client's updates" in told
    assert "which clients take part" in told
    assert len((folder / "privacy.jsonl").read_text().splitlines()) == 2
    on = run(FedAvg(), rounds=3, aggregation=secure, out=folder, resume=True)
    assert on.result["privacy"].startswith(f"({noise.epsilon(3, 1e-6):.4g},")
    (folder / "privacy.jsonl").unlink()
    with pytest.raises(LedgerError, match="ledger"):
        run(FedAvg(), rounds=4, aggregation=secure, out=folder, resume=True)
    for multiplier in (1e-3, 0.7, 8.0, 1e7):  # what is planned fits, whatever is rounded how
        for rounds, sums in ((1, 1), (3, 2), (7, 2), (1000, 2)):
            other = SecureSum(noise=DistributedNoise(noise_multiplier=multiplier))
            ledger = other.ledger(rounds, sums)
            assert not ledger.accountant.would_exceed(ledger.budget, *ledger.event, rounds)
    # Two sums a round, one of which comes first.
    twice = run(Mime(), rounds=1, aggregation=secure).result["privacy"]
    assert twice.startswith(f"({noise.epsilon(2, 1e-6):.4g},")
    assert "privacy" not in run(FedAvg(), rounds=1, aggregation=SecureSum()).result
    private = ClientPrivacy(8.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="aggregation without noise of its own"):
        run(FedAvg(weighted=False), privacy=private, aggregation=secure)


@pytest.mark.slow
def test_the_same_bits_on_ray():
    pytest.importorskip("ray", reason="pip install 'phalanx[ray]'")
    assert same_secure_sums(Ray())


@pytest.mark.slow
def test_the_same_bits_on_ranks(tmp_path):
    with Ranks(5, tmp_path) as ranks:
        assert ranks(on_server, same_secure_sums) == [True, None, None, None, None]


def test_the_bits_of_one_process_on_flower(subtests):
    pytest.importorskip("flwr", reason="pip install 'phalanx[flower]'")
    from federated.test_flower import on_flower

    for algorithm in (FedAvg(), Scaffold(), FedProx(weighted=False)):
        with subtests.test(repr(algorithm)):
            secure = {"aggregation": SecureSum(max_samples=12)}
            options = {"clients_per_round": 3, "rounds": 3}
            here = run(algorithm, engine=ONE_BY_ONE, **secure, **options)
            there = on_flower(algorithm, **secure, **options)
            assert weights(here).equal(weights(there))
            for one, other in zip(here.rounds, there.rounds, strict=True):
                for name in ("clients", "loss", "message_bytes", "broadcast_bytes"):
                    assert one[name] == other[name]


def test_drop_outs_and_liars_on_flower(subtests):
    pytest.importorskip("flwr", reason="pip install 'phalanx[flower]'")
    from federated.test_flower import GARBAGE, on_flower, only
    from phalanx.federated.flower import disconnected

    secure = {"aggregation": SecureSum(threshold=3, max_samples=12)}
    with subtests.test("a client that is lost in round 1"):
        found = on_flower(Scaffold(), grid={"faults": only(1, disconnected, [1])}, **secure)
        plain = on_flower(Scaffold(), grid={"faults": only(1, disconnected, [1])})
        assert found.rounds[1]["missing"] == {"1": "dead"}
        assert (weights(found) - weights(plain)).abs().max() < 2e-6
    for name in ("no arrays", "no metrics", "wrong dtype"):
        with subtests.test(name):
            faults = {"faults": only(1, GARBAGE[name], [1])}
            found = on_flower(FedAvg(), grid=faults, **secure)
            assert set(found.rounds[1]["missing"]) == {"1"}
            assert found.rounds[1]["suspects"] == [1]
            assert found.rounds[2]["missing"] == {}
