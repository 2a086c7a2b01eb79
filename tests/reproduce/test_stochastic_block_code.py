"""The recipe on few workers: the whole of it, in seconds."""

import pytest

from phalanx.coding import StochasticBlockCode
from phalanx.reproduce import StochasticBlockCodes, reproduce, stochastic_block_code
from phalanx.reproduce.run import Reproduction

TINY = StochasticBlockCodes(
    num_workers=40, load=8, signals=(0.5, 0.95, 4.0), draws=6, steps=20, runs=1
)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Reproduction:
    return reproduce(TINY, tmp_path_factory.mktemp("out"), size="quick", jobs=1)


def rows(done, title):
    table = next(one for one in done.findings.tables if one.title.startswith(title))
    return [dict(zip(table.headers, row, strict=True)) for row in table.rows]


def claim(done, text):
    return next(one for one in done.findings.claims if text in one.text)


def test_laws_are_borne_out_and_the_greedy_adversary_is_told(done):
    laws = [one for one in done.findings.claims if one.text.startswith("Expected one-step")]
    assert [one.same for one in laws] == ["yes"] * 3
    assert claim(done, "accurate").same == "yes"
    assert claim(done, "Whole groups").same == "yes"
    assert claim(done, "No efficient adversary").same == "no"


def test_whole_groups_of_repetition_are_lost_to_every_adversary(done):
    """Eight of 40 partitions, where eight workers hold the same."""
    row = next(one for one in rows(done, "Errors") if one["code"] == "fractional repetition")
    for choice in ("groups known", "groups found", "greedy"):
        assert row[choice] == pytest.approx(8)


def test_training_by_class_needs_the_code(done):
    """Whoever is silent takes a class along, unless others hold it, too."""
    row = {one["code"]: one for one in rows(done, "Training")}
    column = "by class, groups known"
    assert row["block, signal 0.95"][column] > row["uncoded"][column] + 0.05


def test_groups_are_compared_by_an_index_that_is_zero_for_a_guess():
    """Were one found group to hold everybody, all pairs of one group would be together."""
    recipe = StochasticBlockCodes(40, 8, draws=3)
    code = StochasticBlockCode.recommend(40, 8, 8, signal_to_noise=6.0)
    found = stochastic_block_code._errors(recipe, None, code, "groups found")
    assert found["agreement"] == pytest.approx([1.0] * 3)
    hidden = StochasticBlockCode(40, cluster_size=8, inside=0.2, across=0.2)
    found = stochastic_block_code._errors(recipe, None, hidden, "groups found")
    assert max(map(abs, found["agreement"])) < 0.3
