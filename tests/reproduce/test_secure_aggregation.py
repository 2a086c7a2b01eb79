"""The recipe of secure aggregation, at a tiny size."""

import pytest
import torch

from phalanx.reproduce import SecureAggregationRecipe, reproduce
from phalanx.reproduce.secure_processes import processes_record


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


def test_workers_that_drop_out_change_nothing_for_the_others(secure):
    table = next(one for one in secure.findings.tables if one.title == "Drop-outs")
    assert [row[:4] for row in table.rows] == [
        *((lost, 2, 2, 0) for lost in range(4)),
        (6, 2, 0, 2),
    ]
    verdicts = {one.text: one.same for one in secure.findings.claims}
    assert [same for text, same in verdicts.items() if "fault-tolerant" in text] == ["yes"]


def test_noise_is_told_beside_what_it_promises(secure):
    table = next(one for one in secure.findings.tables if one.title == "Noise")
    assert table.rows[0][1] == "no statement"
    epsilons = [row[1] for row in table.rows[1:]]
    assert epsilons == sorted(epsilons, reverse=True)
    assert 0 < epsilons[-1] < 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rounds_with_a_process_for_each_party_are_those_of_the_rule():
    """Two clients die when one server has their share; noise of clients averages out as it does."""
    pytest.importorskip("grpc")
    rows = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0)).repeat(6, 1) / 50
    rows[0] *= -50
    found = processes_record(rows, 1, 1, 0.0, None)
    assert (found["lost"], found["noise"]) == (1, 0.0)
    assert found["largest error"] <= 2
    found = processes_record(rows, 1, 0, 0.1, 100.0)
    ratio = found["root mean square error"] / found["expected of the noise"]
    assert ratio == pytest.approx(1, abs=0.1)
