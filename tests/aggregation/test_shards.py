"""Rules where every process holds a shard of the columns: threads stand for the processes."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

import pytest
import torch

from laws import concrete
from phalanx import aggregation
from phalanx.aggregation import (
    ARC,
    Aggregator,
    Bucketing,
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    CoordinateRule,
    Krum,
    Mean,
    NearestNeighborMixing,
    Pipeline,
    Shard,
)
from phalanx.errors import TooManyByzantineError

RULES = [rule() for rule in concrete(aggregation, Aggregator)] + [
    ARC() >> NearestNeighborMixing() >> CenteredClipping(),
    Bucketing(2) >> CoordinateMedian(),
    NearestNeighborMixing() >> Bulyan(),
]
all_rules = pytest.mark.parametrize("rule", RULES, ids=repr)
CUTS = [0, 1, 1, 9_000, 20_000]  # one shard holds a single column, one none


def as_pipeline(rule):
    return rule if isinstance(rule, Pipeline) else Pipeline((), rule)


def columns_of(state, columns):
    return tuple(part[columns] if part.ndim else part for part in state)


def on_shards(rule, rows, state):
    """One round on every shard at once: what each of them got."""
    shards = [slice(start, stop) for start, stop in itertools.pairwise(CUTS)]
    parts, meeting = {}, Barrier(len(shards), timeout=60)

    def run(rank):
        def add_up(part):
            meeting.wait()
            parts[rank] = part
            meeting.wait()
            return torch.stack([parts[other] for other in range(len(shards))]).sum(dim=0)

        own = shards[rank]
        return rule.update_shard(rows[:, own], columns_of(state, own), Shard(rows.shape[1], add_up))

    with ThreadPoolExecutor(len(shards)) as pool:
        return list(pool.map(run, range(len(shards))))


@all_rules
def test_shards_together_do_what_the_rule_does(rule, subtests):
    for bad in [(), (3,)]:
        with subtests.test(bad=bad):
            rule, numbers = as_pipeline(rule), torch.Generator().manual_seed(0)
            if bad and rule.num_tolerated(12) == 0:
                pytest.skip("the rule survives nobody")
            there = here = rule.init(CUTS[-1])
            for _ in range(2):
                rows = 3 + torch.randn(12, CUTS[-1], generator=numbers)
                rows[list(bad), 15_000] = torch.nan
                answer, here = rule.update(rows, here)
                told = on_shards(rule, rows, there)
                there = (
                    here[0],
                    *([torch.cat([state[1] for _, state in told])] if here[1:] else []),
                )
                value = torch.cat([own.value for own, _ in told])
                if isinstance(rule.rule, (CoordinateMedian, Krum)) and not rule.before:
                    assert value.equal(answer.value)  # a message's own numbers: nothing is summed
                exact = isinstance(rule.rule, (CoordinateRule, Bulyan)) and not rule.before
                close = 1e-6 if exact else 1e-5  # kernels sum a last few columns in another order
                torch.testing.assert_close(value, answer.value, rtol=close, atol=close)
                for own, _ in told:
                    torch.testing.assert_close(own.scores, answer.scores, rtol=1e-5, atol=1e-5)
                    assert own.suspects.equal(answer.suspects)
                    assert own.dropped.nonzero().flatten().tolist() == list(bad)
                    for ours, first in zip(own[1:], told[0][0][1:], strict=True):
                        assert ours is None or ours.equal(first)


def test_too_many_are_an_error_on_every_shard():
    rows = torch.ones(5, CUTS[-1])
    rows[0, 0], rows[1, 10_000] = torch.nan, torch.inf
    rule = as_pipeline(Krum(1))
    with pytest.raises(TooManyByzantineError) as caught:
        on_shards(rule, rows, rule.init(CUTS[-1]))
    assert caught.value.workers == [0, 1]


@dataclass(frozen=True)
class Whole(Aggregator):
    """A rule that says nothing about mixtures."""

    def num_tolerated(self, num_workers):
        return 0

    def judge(self, rows):
        return Mean().judge(rows)


def test_a_rule_that_needs_whole_messages_is_refused():
    rule = as_pipeline(Whole())
    with pytest.raises(ValueError, match="on shards, got Whole"):
        rule.update_shard(torch.ones(2, 3), rule.init(3), Shard(6, lambda part: part))
