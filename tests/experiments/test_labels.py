from laws import concrete
from phalanx import aggregation, attacks, coding
from phalanx.aggregation import Bucketing, Krum, NearestNeighborMixing, Resampling
from phalanx.attacks import Attack, ReverseGradient
from phalanx.coding import Code
from phalanx.experiments.labels import labels, slug


def test_all_that_has_a_name_gets_one_of_its_own():
    rules = [cls() for cls in concrete(aggregation, aggregation.Aggregator)]
    codes = [cls() for cls in concrete(coding, Code)]
    drills = [cls() for cls in concrete(attacks, Attack)]
    for family in (rules, codes, drills):
        found = labels(family)
        assert len(set(found)) == len(found)
        assert all(found)


def test_what_would_be_alike_is_told_apart():
    things = [NearestNeighborMixing(2) >> Krum(2), NearestNeighborMixing(2) >> Krum(2, "byzfl")]
    assert labels(things) == ["NNM(2) » Krum(2)", "NNM(2) » Krum(2, neighbours=byzfl)"]
    alike = [ReverseGradient(1.00000001), ReverseGradient(1.00000002)]
    assert labels(alike) == [f"phalanx.{one!r}" for one in alike]
    assert labels([Krum(), Krum()]) == [f"phalanx.{Krum()!r} #1", f"phalanx.{Krum()!r} #2"]
    seeds = [Bucketing() >> Krum(), aggregation.Pipeline([Bucketing()], Krum(), seed=3)]
    assert len(set(labels(seeds))) == 2
    assert len(set(labels([Bucketing() >> Krum(), Resampling() >> Krum()]))) == 2


def test_slugs_are_names_of_files():
    assert slug("../a b") == "a-b"
    assert slug("»") == "x"
