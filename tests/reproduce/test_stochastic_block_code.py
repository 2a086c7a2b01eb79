"""The recipe on few workers: the whole of it, in seconds."""

import pytest

from phalanx.reproduce import StochasticBlockCodes, reproduce
from phalanx.reproduce.run import Reproduction

TINY = StochasticBlockCodes(num_workers=24, load=4, stragglers=(4, 8), draws=20)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Reproduction:
    return reproduce(TINY, tmp_path_factory.mktemp("out"), size="quick", jobs=1)


def rows(done, title):
    table = next(one for one in done.findings.tables if one.title.startswith(title))
    return [dict(zip(table.headers, row, strict=True)) for row in table.rows]


def test_laws_and_order_are_borne_out(done):
    laws = [one for one in done.findings.claims if one.text.startswith("Expected one-step")]
    assert [one.same for one in laws] == ["yes"] * 3
    order = next(one for one in done.findings.claims if "repetition is best" in one.text)
    assert order.same == "yes"
    assert "by chance" in done.findings.answer


def test_whole_groups_of_repetition_are_lost_to_every_adversary(done):
    for choice in ("Stragglers: whole groups", "Stragglers: one by one"):
        for row in rows(done, choice):
            if row["code"] == "fractional repetition":
                assert row["optimal"] == pytest.approx(row["stragglers"])


def test_every_code_meets_every_choice_and_least_squares_is_the_better(done):
    assert len(done.findings.tables) == len(done.findings.plots) == 4
    for table in done.findings.tables:
        found = rows(done, table.title)
        assert len(found) == 4 * 2
        for row in found:
            assert row["optimal"] <= row["one step"] + 1e-9
    page = (done.folder / "findings.html").read_text()
    assert page.count("<svg") == 4
