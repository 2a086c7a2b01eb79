"""The recipe of secure aggregation, at a tiny size."""

import pytest

from phalanx.reproduce import SecureAggregationRecipe, reproduce


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    tiny = SecureAggregationRecipe(draws=2, steps=3, sizes=((10, 500),))
    return reproduce(tiny, tmp_path_factory.mktemp("out"), size="quick", jobs=1)


def test_secure_aggregation_chooses_as_in_the_clear(secure):
    verdicts = {one.text: one.same for one in secure.findings.claims}
    assert verdicts["The rule's choice is that of the rule in the clear."] == "yes"
    assert [one.ours for one in secure.findings.claims if "left it out" in one.ours]
    table = next(one for one in secure.findings.tables if one.title == "Training")
    assert [row[0] for row in table.rows[:2]] == ["Krum", "secure Krum"]
    assert all(float(row[2]) < 0.01 for row in table.rows)
    assert (secure.folder / "findings.html").exists()
