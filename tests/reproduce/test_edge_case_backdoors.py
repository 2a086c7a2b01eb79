"""The recipe of edge-case backdoors, at a tiny size."""

import pytest

from phalanx.reproduce import EdgeCaseBackdoors, reproduce


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_attackers_are_chosen_with_one_seed_and_measured_with_others(tmp_path):
    tiny = EdgeCaseBackdoors(num_clients=12, rounds=1, seeds=(0, 1), radii=(1.0,))
    found = reproduce(tiny, tmp_path, size="quick", jobs=1).findings
    tables = {one.title: one for one in found.tables}
    names = [row[0] for row in tables["Tuned attackers, and harm"].rows]
    assert names == list(tiny.defences)
    assert [row[0] for row in tables["Backdoor accuracy"].rows] == names
    tried = [row[0] for row in tables["The search"].rows]
    assert tried == ["no attack", *tiny.budget.candidates()]
    assert all(row[-1] in tried[1:] for row in tables["Tuned attackers, and harm"].rows)
    verdicts = {one.paper: one.same for one in found.claims}
    assert verdicts["not in the paper"] == "—"
    assert len(found.claims) == 8
