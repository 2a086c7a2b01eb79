import itertools
import pickle
import re

import pytest
import torch
from jsonargparse import ArgumentParser

from laws import concrete
from phalanx import aggregation
from phalanx.aggregation import (
    ARC,
    Aggregator,
    Bucketing,
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    MultiKrum,
    NearestNeighborMixing,
    NormClipping,
    Pipeline,
    PreAggregation,
    Resampling,
    TrimmedMean,
)
from phalanx.aggregation.mixtures import gather
from phalanx.errors import TooManyByzantineError
from phalanx.randomness import generator

PARTS = [part() for part in concrete(aggregation, PreAggregation)]
RULES = [
    CoordinateMedian(),
    GeometricMedian(),
    Krum(2),
    MultiKrum(2),
    Mean(),
    Bulyan(2),
    TrimmedMean(2),
    CenteredClipping(iterations=5),
]

all_parts = pytest.mark.parametrize("part", PARTS, ids=repr)


def random(num_workers, dim, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(num_workers, dim, generator=draws, dtype=torch.float64)


def matrix(part, rows, num_byzantine=2, seed=0):
    geometry = gather(rows, origin=part.from_origin).geometry
    return part.mix(geometry, num_byzantine, torch.Generator().manual_seed(seed))


def mixtures_by_hand(part, rows, num_byzantine, position, step=0):
    """What a part makes of the messages, on the messages themselves."""
    draws = generator(0, "mixing", position, step)
    num_rows = len(rows)
    if isinstance(part, Bucketing):
        order = torch.randperm(num_rows, generator=draws)
        means = [rows[bucket].mean(dim=0) for bucket in order.split(part.size)]
        return torch.stack(means), num_byzantine
    if isinstance(part, Resampling):
        orders = [torch.randperm(num_rows, generator=draws) for _ in range(part.copies)]
        return torch.stack([rows[order] for order in orders]).mean(dim=0), 2 * num_byzantine
    if isinstance(part, NearestNeighborMixing):
        near = [(rows - row).norm(dim=1).argsort()[: num_rows - num_byzantine] for row in rows]
        return torch.stack([rows[one].mean(dim=0) for one in near]), num_byzantine
    norms = rows.norm(dim=1)
    if isinstance(part, ARC):
        clipped = int(2 * num_byzantine / num_rows * (num_rows - num_byzantine))
        radius = norms.sort(descending=True).values[clipped]
    else:
        given = getattr(part, "radius", None)  # adaptive ones begin as the median
        radius = norms.median() if given is None else given
    return rows * (radius / norms).clamp(max=1)[:, None], num_byzantine


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_is_the_rule_on_the_mixtures(rule, subtests):
    """One after the other with every mixture formed: the slow and obvious way."""
    befores = [
        *([part] for part in PARTS),
        [Bucketing(2), NearestNeighborMixing()],
        [ARC(), Resampling(2)],
    ]
    for before, offset in itertools.product(befores, [0.0, 1e3]):
        with subtests.test(before=before, offset=offset):
            rows = random(31, 20) + offset
            rows[:2] *= 7
            pipeline = Pipeline(before, rule.with_num_byzantine(1)).with_num_byzantine(2)
            mixed, bad = rows, 2
            for position, part in enumerate(pipeline.before):
                mixed, bad = mixtures_by_hand(part, mixed, bad, position)
            answer = pipeline.explain(rows)
            torch.testing.assert_close(
                answer.value, rule.with_num_byzantine(bad)(mixed), rtol=1e-6, atol=1e-6
            )
            if answer.weights is not None:
                torch.testing.assert_close(
                    answer.value, answer.weights @ rows, rtol=1e-6, atol=1e-6
                )


class Middle(Aggregator):
    """A rule that knows nothing of mixtures, and remembers how often it was asked."""

    def init(self, dim, *, dtype=torch.float32, device="cpu"):
        return (torch.tensor(0),)

    def num_tolerated(self, num_workers):
        return (num_workers - 1) // 2

    def judge(self, rows, weights=None):
        return CoordinateMedian().judge(rows, weights)

    def update(self, gradients, state, weights=None):
        return self.explain(gradients, weights), (state[0] + 1,)


def test_any_rule_will_do():
    rows = random(9, 20)
    rows[3] = torch.nan
    pipeline = NearestNeighborMixing(2) >> Middle()
    exact = (NearestNeighborMixing(2) >> CoordinateMedian()).explain(rows)
    answer, state = pipeline.update(rows, pipeline.init(20))
    torch.testing.assert_close(answer.value, exact.value)
    assert answer.dropped.tolist() == exact.dropped.tolist()
    assert [int(part) for part in state] == [1, 1]


def test_arrows_build_what_the_command_line_builds():
    built = Bucketing(2) >> NearestNeighborMixing(2) >> Krum(2)
    assert built == Pipeline((Bucketing(2), NearestNeighborMixing(2)), Krum(2))
    assert built == Bucketing(2) >> (NearestNeighborMixing(2) >> Krum(2))
    assert built == (Bucketing(2) >> NearestNeighborMixing(2)) >> Krum(2)
    assert ARC() >> (Bucketing() >> NearestNeighborMixing()) >> Krum() == Pipeline(
        (ARC(), Bucketing(), NearestNeighborMixing()), Krum()
    )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--rule", type=Aggregator)
    line = "--rule Pipeline --rule.before+ Bucketing --rule.before.size 2 --rule.before+ "
    line += "NearestNeighborMixing --rule.before.num_byzantine 2 --rule.rule Krum "
    config = parser.parse_args((line + "--rule.rule.num_byzantine 2 --rule.seed 0").split())
    found = parser.instantiate(config).rule
    assert (list(found.before), found.rule) == (list(built.before), built.rule)
    again = parser.instantiate(parser.parse_string(parser.dump(config))).rule
    assert again == found


def test_num_byzantine_means_byzantine_workers_in_every_part():
    assert (Bucketing(2) >> Krum(2)).num_tolerated(14) == 2
    assert (Resampling(2) >> TrimmedMean(2)).num_tolerated(9) == 2
    assert (NearestNeighborMixing(2) >> CoordinateMedian()).num_tolerated(9) == 2
    assert (Bucketing(2) >> CoordinateMedian()).num_tolerated(9) == 2
    assert (Resampling(2) >> CoordinateMedian()).num_tolerated(9) == 2
    assert (NormClipping() >> Mean()).num_tolerated(9) == 0
    assert (NearestNeighborMixing(2) >> CoordinateMedian()).num_byzantine == 2
    assert (NormClipping() >> Mean()).num_byzantine is None
    with pytest.raises(
        ValueError, match="9 workers, 3 of them Byzantine, make 5 mixtures, 3 of them"
    ):
        (Bucketing(2) >> TrimmedMean(3)).num_tolerated(9)
    with pytest.raises(
        ValueError, match="9 workers, 3 of them Byzantine, make 9 mixtures, 6 of them"
    ):
        (Resampling(2) >> TrimmedMean(3)).num_tolerated(9)
    with pytest.raises(ValueError, match="num_byzantine must be below num_workers / 2, got 5 of 9"):
        (NearestNeighborMixing(5) >> Mean()).num_tolerated(9)
    with pytest.raises(ValueError, match=r"must be the same in all parts, got \[1, 2\]"):
        NearestNeighborMixing(2) >> Krum(1)
    with pytest.raises(ValueError, match="rule must not be a Pipeline"):
        Pipeline(rule=Pipeline())


def test_liars_among_many_are_named_through_the_mixtures():
    rows = random(15, 40)
    rows[[3, 8]] += 50
    answer = (NearestNeighborMixing(2) >> MultiKrum(2)).explain(rows)
    assert answer.suspects.nonzero().flatten().tolist() == [3, 8]
    assert answer.scores.argsort()[-2:].sort().values.tolist() == [3, 8]
    assert not answer.weights[[3, 8]].any()
    answer = (Bucketing(2) >> MultiKrum(2, num_selected=5)).explain(rows)
    assert answer.suspects[[3, 8]].all()
    assert answer.suspects.sum() <= 6  # they and who shares a bucket that was left out


def test_dropped_workers_enter_no_mixture():
    rows = random(15, 40)
    rows[[3, 8]] = torch.nan
    for part in PARTS:
        answer = (part >> GeometricMedian()).with_num_byzantine(2).explain(rows)
        assert answer.dropped.nonzero().flatten().tolist() == [3, 8]
        assert torch.isfinite(answer.value).all()
        assert answer.suspects[[3, 8]].all()
    with pytest.raises(TooManyByzantineError, match=r"\[3, 8\]"):
        (NearestNeighborMixing(1) >> Krum(1))(rows)


def test_every_round_draws_anew_and_a_resumed_one_the_same(subtests):
    for part in [Bucketing(2), Resampling(2)]:
        with subtests.test(part=part):
            rows = random(12, 5)
            pipeline = part >> CenteredClipping(radius=1.0)
            state = pipeline.init(5, dtype=torch.float64)
            states, values = [state], []
            for _ in range(3):
                answer, state = pipeline.update(rows, state)
                states.append(state)
                values.append(answer)
            draws = [answer.weights for answer in values]
            assert not any(torch.equal(draws[i], draws[i + 1]) for i in range(2))
            saved = pickle.loads(pickle.dumps(states[1]))
            assert torch.equal(pipeline.update(rows, saved)[0].value, values[1].value)
            other = Pipeline((part,), CenteredClipping(radius=1.0), seed=1)
            first = other.update(rows, other.init(5, dtype=torch.float64))[0]
            assert not torch.equal(first.weights, draws[0])


def test_parts_show_an_example_and_name_their_source(subtests):
    for part in PARTS:
        with subtests.test(part=part):
            assert ">>> " in type(part).__doc__
            assert re.search(
                r"^    Source: .*?\b20\d\d\b", type(part).__doc__, re.MULTILINE | re.DOTALL
            )
            assert type(part)() == part


def test_weights_are_shares(subtests):
    for part in PARTS:
        with subtests.test(part=part):
            weights = matrix(part, random(12, 5))
            assert weights.dtype == torch.float64
            assert ((weights >= 0) & (weights <= 1)).all()
            if not part.from_origin:
                torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)).double())


def test_buckets_of_equal_size_keep_the_mean(subtests):
    for size in [1, 2, 3, 4]:
        with subtests.test(size=size):
            rows = random(12, 5)
            buckets = matrix(Bucketing(size), rows)
            assert len(buckets) == 12 // size
            torch.testing.assert_close((buckets @ rows).mean(dim=0), rows.mean(dim=0))
            assert ((buckets > 0).sum(dim=0) == 1).all()


def test_the_last_bucket_may_be_short():
    buckets = matrix(Bucketing(3), random(11, 5))
    assert (buckets > 0).sum(dim=1).tolist() == [3, 3, 3, 2]


def test_resampling_uses_every_message_equally_often(subtests):
    for copies in [1, 2, 3]:
        with subtests.test(copies=copies):
            shares = matrix(Resampling(copies), random(11, 5))
            assert len(shares) == 11
            torch.testing.assert_close(shares.sum(dim=0), torch.ones(11).double())
            torch.testing.assert_close(shares * copies, (shares * copies).round())
            assert ((shares > 0).sum(dim=0) <= copies).all()


def test_the_variance_falls_by_the_messages_in_a_mixture(subtests):
    for part in [Bucketing(2), Resampling(2), Bucketing(4)]:
        with subtests.test(part=part):
            rows = random(400, 50)
            per_mixture = getattr(part, "size", None) or part.copies
            assert (matrix(part, rows) @ rows).var().item() == pytest.approx(
                1 / per_mixture, rel=0.1
            )


def test_what_is_too_long_is_shortened(subtests):
    for part, lie, offset in itertools.product(
        [NormClipping(2.0), NormClipping(), ARC(2)], [10.0, 1e30], [0.0, 1e4]
    ):
        with subtests.test(part=part, lie=lie, offset=offset):
            rows = random(9, 20) + offset
            rows[0] *= lie
            norms = (matrix(part, rows) @ rows).norm(dim=1)
            before = rows.norm(dim=1)
            radius = {NormClipping(2.0): 2.0, NormClipping(): before.median()}.get(part)
            # floor(2 * 2 / 9 * 7) = 3
            radius = before.sort().values[-4] if radius is None else radius
            torch.testing.assert_close(norms, before.clamp(max=radius), rtol=1e-6, atol=0)


def test_nothing_is_clipped_when_nobody_lies():
    rows = random(9, 20)
    assert torch.equal(matrix(ARC(2), rows, num_byzantine=0), torch.eye(9).double())


def test_messages_of_length_zero_stay():
    assert (NormClipping() >> Mean())(torch.zeros(5, 3)).tolist() == [0.0] * 3
    assert (ARC(1) >> Mean())(torch.zeros(5, 0)).shape == (0,)


def test_arguments_are_checked(subtests):
    for part, value in [(Bucketing, 0), (Resampling, 0), (NormClipping, -1.0), (ARC, -1)]:
        with subtests.test(part=part), pytest.raises(ValueError, match="must be"):
            part(value)
