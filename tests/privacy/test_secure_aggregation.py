"""The secure aggregation protocol: results, range check, dropouts, views of the parties."""

import functools
import itertools
import math
import typing
from dataclasses import fields, replace

import pytest
import torch

from phalanx.aggregation import (
    ARC,
    CAF,
    Bucketing,
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    MinimumDiameterAveraging,
    MoNNA,
    MultiKrum,
    NearestNeighborMixing,
    Resampling,
    SmallestMaximumEigenvalueAveraging,
    TrimmedMean,
)
from phalanx.errors import (
    DecodeError,
    MoreThanDistancesError,
    ReusedRandomnessError,
    TooManyByzantineError,
)
from phalanx.privacy import (
    ModelServerView,
    RoundLedger,
    SecureAggregation,
    SecureClient,
    SecureSetup,
    WorkerServerView,
    run_round,
    seeded_entropy,
)
from phalanx.privacy.secure_aggregation import fixed_point, messages, protocol
from phalanx.privacy.secure_aggregation.client import split

SELECTING = [
    Krum(2),
    MultiKrum(2),
    MinimumDiameterAveraging(2),
    MoNNA(2, reference=3),
    SmallestMaximumEigenvalueAveraging(2),
    NearestNeighborMixing(2) >> Krum(2),
]
WEIGHING = [
    GeometricMedian(),
    CAF(2),
    NearestNeighborMixing(2) >> GeometricMedian(2),
    Bucketing(2) >> MultiKrum(1),
    Resampling(2) >> MinimumDiameterAveraging(1),
]
N, D = 10, 40
SETUP = SecureSetup(N, D)


def gradients(seed=0, num_workers=N, dim=D):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_workers, dim, generator=generator)


def rounded(rows):
    return (rows.double() * 2**16).round() / 2**16


def lab(rows, rule=None, setup=SETUP, seed=0, change=lambda one, other: (one, other)):
    """A round whose uploads are tampered with by `change`."""
    random = seeded_entropy(seed)
    one, other = ModelServerView(setup, 0), WorkerServerView(setup, 0)
    for worker, row in enumerate(rows):
        seeds, vectors = split(row, setup, worker, 0, random)
        one, other = one.receive(seeds), other.receive(vectors)
    one, other = change(one, other)
    rule = rule or MultiKrum(2)
    return run_round(one, other, rule, rule.init(0), random)


# What comes out


@pytest.mark.parametrize("draws", [range(4), pytest.param(range(100), marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", SELECTING, ids=lambda rule: type(rule).__name__)
def test_the_clear_rules_choice_and_exactly_the_mean_of_it(rule, draws):
    for seed in draws:
        rows = gradients(seed)
        rows[:2] *= 1 + seed % 7
        secure, clear = SecureAggregation(rule).explain(rows.double()), rule.explain(rows)
        assert torch.equal(secure.weights != 0, clear.weights != 0)
        assert torch.equal(secure.suspects, clear.suspects)
        expected = rounded(rows)[secure.weights != 0].mean(dim=0)
        torch.testing.assert_close(secure.value, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rule", WEIGHING, ids=lambda rule: type(rule).__name__)
def test_weights_that_differ_add_one_more_unit(rule):
    for seed in range(3):
        rows = gradients(seed)
        rows[:2] *= 30
        secure, clear = SecureAggregation(rule).explain(rows.double()), rule.explain(rows.double())
        torch.testing.assert_close(secure.weights, clear.weights, rtol=0, atol=1e-5)
        expected = secure.weights @ rounded(rows)
        slack = 2**-24 * rows.abs().sum(dim=0).max().item()
        torch.testing.assert_close(secure.value, expected, rtol=0, atol=2**-16 + slack)


def test_the_plain_mean_opens_no_distances():
    transcript = lab(gradients(), Mean())
    expected = rounded(gradients()).mean(dim=0)
    torch.testing.assert_close(transcript.aggregate().value, expected, rtol=0, atol=1e-14)
    kinds = [type(message) for message in transcript.between]
    assert kinds == [messages.Participants, messages.Participants, messages.SumShare]


def test_opened_distances_are_those_of_the_rounded_messages():
    rows = gradients()
    opened = lab(rows).worker_server.squared_distances
    exact = (rounded(rows)[:, None] - rounded(rows)[None]).square().sum(dim=2)
    torch.testing.assert_close(opened, exact, rtol=1e-12, atol=0)
    clear = (rows[:, None].double() - rows[None].double()).square().sum(dim=2)
    bound = 2 * 2**-16 * math.sqrt(D) * clear.sqrt().max().item()
    torch.testing.assert_close(opened, clear, rtol=0, atol=bound)


def test_products_wrap_as_whole_numbers_do():
    left, right = (protocol.expand(bytes(32), name, 3, 5000) for name in ("left", "right"))
    exact = [
        [sum(x * y for x, y in zip(a, b, strict=True)) for b in right.tolist()]
        for a in left.tolist()
    ]
    wrapped = [[(x + 2**63) % 2**64 - 2**63 for x in row] for row in exact]
    assert fixed_point.inner_products(left, right).tolist() == wrapped


@pytest.mark.slow
def test_rounding_of_weighted_sums_has_no_bias():
    rows = gradients() * 2**-15  # a few units
    expected = torch.zeros(D, dtype=torch.float64)
    total = torch.zeros(D, dtype=torch.float64)
    for seed in range(400):
        secure = SecureAggregation(GeometricMedian(), seed=seed).explain(rows.double())
        expected += secure.weights @ rounded(rows)
        total += secure.value
    assert ((total - expected) / 400).abs().max() < 5 * 0.29 / 20 * 2**-16
    assert abs((total - expected).mean().item() / 400) < 5 * 0.29 / 20 / D**0.5 * 2**-16


# A rule like any other


def test_behaves_like_a_rule():
    rows = gradients()
    rule = SecureAggregation(Bucketing(2) >> MultiKrum(1), seed=3)
    assert rule(rows).dtype == torch.float32
    assert torch.equal(rule(rows), rule(rows))
    state = rule.init(D)
    clear = rule.rule
    memory = clear.init(D)
    for _ in range(3):
        answer, state = rule.update(rows, state)
        known, memory = clear.update(rows, memory)
        torch.testing.assert_close(answer.weights, known.weights)
    assert rule.with_num_byzantine(2) != rule
    assert SecureAggregation(Krum(2)).num_tolerated(9) == 2
    with pytest.raises(ValueError, match="num_byzantine must be below"):
        SecureAggregation(Krum(2)).num_tolerated(4)


def test_sample_weights_are_refused():
    with pytest.raises(ValueError, match="weights must be None"):
        SecureAggregation(Krum(1))(gradients(), weights=range(1, N + 1))


def test_works_at_the_smallest_sizes(subtests):
    rules = (MultiKrum(0), GeometricMedian(), Mean())
    for rule, num_workers, dim in itertools.product(rules, (1, 2, 5), (0, 1, 3)):
        with subtests.test(repr(rule), num_workers=num_workers, dim=dim):
            rows = gradients(0, num_workers, dim)
            value = SecureAggregation(rule)(rows)
            torch.testing.assert_close(value, rule(rows), rtol=0, atol=2 * 2**-16)


def test_rules_that_need_more_than_distances_are_refused(subtests):
    for rule in (CoordinateMedian(), TrimmedMean(), Bulyan(), CenteredClipping(), ARC() >> Krum()):
        with (
            subtests.test(repr(rule)),
            pytest.raises(ValueError, match="rule must weigh messages by their distances alone"),
        ):
            SecureAggregation(rule)


def test_centered_clipping_from_a_message_of_the_round_is_that_in_the_clear(subtests):
    """Weights that differ, up to two units; the published start is refused, with the remedy."""
    rows = gradients()
    for radius, iterations in itertools.product((None, 0.5), (1, 3)):
        with subtests.test(radius=radius, iterations=iterations):
            rule = CenteredClipping(radius, iterations, start="medoid")
            value = SecureAggregation(rule)(rows)
            torch.testing.assert_close(value, rule(rows), rtol=0, atol=2 * 2**-16)
    with pytest.raises(MoreThanDistancesError, match="start='medoid' begins at a message"):
        SecureAggregation(CenteredClipping())


def test_messages_that_are_not_finite_are_dropped_and_counted():
    rows = gradients()
    rows[3, 5], rows[4, 0] = torch.nan, torch.inf
    answer = SecureAggregation(MultiKrum(2)).explain(rows)
    assert answer.dropped.nonzero().flatten().tolist() == [3, 4]
    torch.testing.assert_close(answer.weights[5:], torch.full((5,), 1 / 8, dtype=torch.float64))
    rows[5] = torch.inf
    with pytest.raises(TooManyByzantineError) as error:
        SecureAggregation(MultiKrum(2)).explain(rows)
    assert error.value.workers == [3, 4, 5]


# Who is too long


def test_a_message_that_looks_near_modulo_2_64_is_found(subtests):
    """Distances alone would not show these: 2^63 and, where all others are 0, 2^32 vanish."""
    rows = gradients(dim=400)
    rows[:, 0] = 0
    setup = SecureSetup(N, 400)
    columns = {
        "one dead coordinate": [0],
        "all coordinates": list(range(400)),
        "half of them": list(range(0, 400, 2)),
    }
    for bits, how in itertools.product((28, 31, 32, 40, 48, 62, 63), columns):
        with subtests.test(how, bits=bits):
            added = torch.zeros(400, dtype=torch.int64)
            added[columns[how]] += -(2**63) if bits == 63 else 2**bits
            transcript = lab(rows, MultiKrum(2), setup, change=adding(added))
            answer = transcript.aggregate()
            assert answer.suspects[7]
            assert answer.weights[7] == 0
            assert answer.value.norm() < rows.norm(dim=1).max()
            if bits == 63 or (bits >= 32 and how == "one dead coordinate"):
                squared = transcript.worker_server.squared_distances
                assert squared[7].max() < 4 * squared[6].max()
                assert answer.dropped[7]


def adding(words):
    """Adds these words to the share of worker 7."""

    def change(one, other):
        vectors = dict(other.vectors)
        vectors[7] = vectors[7] + words
        return one, replace(other, vectors=vectors)

    return change


def test_messages_just_short_enough_pass_and_are_exact():
    rows = torch.zeros(N, D)
    rows[:, 0] = 255.9 * torch.tensor([1.0, -1.0]).repeat(N // 2)
    rows[:, 1:] = gradients()[:, 1:] * 0.1
    transcript = lab(rows)
    assert not transcript.aggregate().dropped.any()
    exact = (rounded(rows)[:, None] - rounded(rows)[None]).square().sum(dim=2)
    torch.testing.assert_close(transcript.worker_server.squared_distances, exact)


def test_squared_distances_up_to_2_64_are_read():
    setup = SecureSetup(fraction_bits=16)
    far = torch.tensor([[0], [2**32 - 1]])
    words = fixed_point.pair_distances(fixed_point.inner_products(far, far))
    assert fixed_point.decode_squares(words, setup).item() == pytest.approx(
        (2**32 - 1) ** 2 * 2.0**-32
    )


def test_honest_workers_are_in_range_whatever_others_send(subtests):
    for f in (1, 4):
        with subtests.test(num_byzantine=f):
            sums = protocol.expand(bytes(32), "sums", 9, protocol.NUM_SUMS)
            small = protocol.expand(bytes(32), "small", 9 - f, 64).bitwise_and(2**20 - 1)
            sums[f:] = sums[8] + small
            assert fixed_point.in_range(sums).tolist() == [False] * f + [True] * (9 - f)


# Who drops out


def without(worker, first=True, second=True):
    def change(one, other):
        if first:
            one = replace(one, seeds={k: v for k, v in one.seeds.items() if k != worker})
        if second:
            other = replace(other, vectors={k: v for k, v in other.vectors.items() if k != worker})
        return one, other

    return change


def test_survivors_give_the_result(subtests):
    rows, left = gradients(), torch.arange(N) != 4
    rules = (MultiKrum(2), GeometricMedian(), Mean())
    missing_at = ((True, True), (True, False), (False, True))  # the model and the worker server
    for rule, (first, second) in itertools.product(rules, missing_at):
        with subtests.test(repr(rule), first=first, second=second):
            answer = lab(rows, rule, change=without(4, first, second)).aggregate()
            expected = rule(rounded(rows)[left])
            torch.testing.assert_close(answer.value, expected, rtol=0, atol=2 * 2**-16)
            assert not answer.suspects[4]
            assert answer.weights[4] == 0


def test_malformed_shares_mark_the_sender():
    rows = gradients()

    def change(one, other):
        one = one.receive(messages.SeedShare(0, 1, b"short"))
        other = other.receive(messages.VectorShare(0, 2, torch.zeros(3, dtype=torch.int64)))
        one = one.receive(messages.SeedShare(0, 77, bytes(32)))
        one = one.receive(messages.SeedShare(5, 0, one.seeds[0]))
        return one.mark(-1), other.mark(77)

    answer = lab(rows, MultiKrum(2), change=change).aggregate()
    assert answer.suspects.nonzero().flatten().tolist() == [1, 2]
    left = [0, *range(3, 10)]
    torch.testing.assert_close(answer.value, rounded(rows)[left].mean(dim=0), rtol=0, atol=1e-14)


def test_too_few_left_is_a_typed_error():
    def nobody(one, other):
        return replace(one, seeds={}), other

    with pytest.raises(DecodeError, match="no worker's shares"):
        lab(gradients(), change=nobody)
    with pytest.raises(DecodeError, match="too few shares"):
        lab(gradients()[:3])


def test_steps_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="in their order"):
        ModelServerView(SETUP, 0).measure(
            messages.MaskedShares(0, torch.zeros(0, D).long()),
            messages.MaskedShares(0, torch.zeros(0, D).long()),
        )


def test_masks_are_used_once():
    ledger = RoundLedger()
    ledger.spend(0)
    ledger.spend(5)
    for round in (5, 3):
        with pytest.raises(ReusedRandomnessError):
            ledger.spend(round)


# Who sees what


def leaves(value, path=""):
    """Everything inside a view or message, with where it stands."""
    if hasattr(value, "_fields"):
        for name in value._fields:
            yield from leaves(getattr(value, name), f"{path}.{name}")
    elif hasattr(value, "__dataclass_fields__"):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, typing.Mapping):
        for key, one in value.items():
            yield from leaves(one, f"{path}[{key}]")
    else:
        yield path, value


def test_views_have_no_place_for_what_is_not_theirs():
    ours = {field.name for field in fields(ModelServerView)}
    theirs = {field.name for field in fields(WorkerServerView)}
    assert ours & {"squared_distances", "sums", "verdict", "weights", "vectors"} == set()
    assert theirs & {"aggregate", "seeds", "value"} == set()
    to_model_server = (messages.SeedShare, messages.ModelServerDeal, messages.WeightedShare)
    hidden = {"pairs", "differences", "squared_distances", "weights", "verdict", "products"}
    for kind in to_model_server:
        assert not set(kind._fields) & hidden
    to_worker_server = (messages.VectorShare, messages.WorkerServerDeal, messages.DistanceShares)
    for kind in to_worker_server:
        assert "aggregate" not in kind._fields


@pytest.mark.parametrize(
    "rule", [MultiKrum(2), GeometricMedian()], ids=lambda rule: type(rule).__name__
)
def test_transcripts_hold_no_message_and_nothing_that_is_not_theirs(rule):
    rows = gradients()
    transcript = lab(rows, rule)
    words = rounded(rows).mul(2**16).long()
    aggregate = transcript.model_server.aggregate
    distances = transcript.worker_server.squared_distances
    for view in (transcript.model_server, transcript.worker_server):
        for path, value in leaves(view):
            if not isinstance(value, torch.Tensor):
                continue
            for row in value.reshape(-1, D) if value.numel() % D == 0 else ():
                assert not (row == words).any(dim=0).sum() > 2, path  # but by chance
            if view is transcript.worker_server and value.shape == aggregate.shape:
                assert not torch.allclose(value.double(), aggregate), path
            if view is transcript.model_server and value.shape == distances.shape:
                assert not torch.allclose(value.double(), distances), path
    assert transcript.worker_server.verdict.value.numel() == 0


def uniform(words):
    """Chi-square of the bytes, in standard deviations."""
    counts = torch.bincount(words.contiguous().view(torch.uint8).flatten().long(), minlength=256)
    expected = counts.sum() / 256
    return ((counts - expected).square().sum() / expected - 255).item() / math.sqrt(2 * 255)


def test_everything_on_the_way_is_uniform(subtests):
    for value in (0.0, 1.0, -3.5):
        with subtests.test(value=value):
            require_uniform(torch.full((6, 4000), value / 4))


def require_uniform(rows):
    transcript = lab(rows, MultiKrum(1), SecureSetup(6, 4000))
    shares = transcript.worker_server.vectors.values()
    assert uniform(torch.stack(list(shares))) < 5
    one, other = transcript.model_server, transcript.worker_server
    for words in (one.shares(), one.masks, other.masks, one.masked, other.masked):
        assert abs(uniform(words)) < 5
    *_, mine, theirs, distances, weighted = transcript.between
    for words in (mine.rows, theirs.rows, distances.differences, weighted.values):
        assert abs(uniform(words)) < 5
    assert uniform(torch.cat([distances.pairs, weighted.offsets])) < 5


def opened(rows, seed):
    return lab(rows, MultiKrum(2), seed=seed).worker_server


def test_equal_distances_give_the_worker_server_the_same_view():
    """Rotated and shifted messages: but for noise, it sees the same numbers, sums included."""
    rows = gradients().double()
    turn = torch.linalg.qr(gradients(5, D, D).double()).Q
    moved = rows @ turn + 3
    one, other = opened(rows, 1), opened(moved, 1)
    torch.testing.assert_close(one.squared_distances, other.squared_distances, rtol=0, atol=1e-2)
    assert torch.equal(one.verdict.weights, other.verdict.weights)
    draws = [[opened(x, seed).sums[1:].double() for seed in range(15)] for x in (rows, moved)]
    first, second = (torch.stack(one).flatten() / 2**24 for one in draws)
    grid = torch.linspace(-8, 8, 81, dtype=torch.float64)
    gap = (torch.searchsorted(first.sort().values, grid) / len(first)) - (
        torch.searchsorted(second.sort().values, grid) / len(second)
    )
    assert gap.abs().max() < 0.05


def test_the_same_aggregate_gives_the_model_server_the_same_view():
    rows = gradients()
    other = rows.flip(0)
    one, two = (lab(x, MultiKrum(2), seed=2) for x in (rows, other))
    assert torch.equal(one.model_server.aggregate, two.model_server.aggregate)
    assert one.model_server.answer.divisor == two.model_server.answer.divisor
    assert not torch.equal(one.model_server.masked, two.model_server.masked)


# Clients


def test_clients_clip_and_refuse():
    client = SecureClient(SETUP, 0, clip_norm=2.0)
    seed, vector = client.share(gradients()[0], 0)
    words = vector.values + protocol.expand(seed.seed, "message", D)
    expected = gradients()[0] * 2 / gradients()[0].norm()
    torch.testing.assert_close(words.float() / 2**16, expected, rtol=0, atol=2**-16)
    for bad in (gradients()[0] * 1e3, gradients()[0] * torch.nan, gradients()[0] + torch.inf):
        with pytest.raises(ValueError, match="finite with a norm below 256"):
            SecureClient(SETUP, 0).share(bad, 0)
    with pytest.raises(ValueError, match="must have 40 numbers, got 3"):
        client.share(torch.zeros(3), 0)


def test_bad_clients_and_setups_are_refused(subtests):
    client = functools.partial(SecureClient, SETUP)
    for make, arguments, message in (
        (client, {"worker": 10}, "worker must be from 0 to 9, got 10"),
        (client, {"clip_norm": 256.0}, "clip_norm must be above 0 and below 256"),
        (client, {"noise_std": -1.0}, "noise_std must be at least 0"),
        (client, {"noise_std": 1.0}, "noise_std needs a clip_norm"),
        (SecureSetup, {"num_workers": 0}, "num_workers must be at least 1"),
        (SecureSetup, {"dim": -1}, "dim must be at least 0"),
        (SecureSetup, {"fraction_bits": 0}, "fraction_bits must be from 1 to 24"),
        (SecureSetup, {"fraction_bits": 25}, "fraction_bits must be from 1 to 24"),
    ):
        with subtests.test(message), pytest.raises(ValueError, match=message):
            make(**arguments)


def test_noise_is_gaussian_and_of_this_size():
    setup = SecureSetup(1, 20_000)
    client = SecureClient(setup, 0, clip_norm=1.0, noise_std=0.5)
    seed, vector = client.share(torch.zeros(20_000), 0, seeded_entropy(1))
    noise = (vector.values + protocol.expand(seed.seed, "message", 20_000)).double() / 2**16
    assert noise.mean().abs() < 5 * 0.5 / 20_000**0.5
    assert noise.std().item() == pytest.approx(0.5, rel=0.03)
    assert noise.abs().max() > 1.5
    assert (noise.abs() < 0.5).double().mean().item() == pytest.approx(0.6827, abs=0.02)
