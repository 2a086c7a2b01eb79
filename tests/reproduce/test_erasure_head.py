"""The recipe on few workers and iterations."""

import gzip

import pytest

from phalanx.reproduce import ErasureHeads, reproduce

TINY = ErasureHeads(num_workers=9, collected=4, iterations=12)


def rows(done, name):
    table = next(one for one in done.findings.tables if one.title == f"Time to a loss: {name}")
    return {row[0]: dict(zip(table.headers, row, strict=True)) for row in table.rows}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PHALANX_DATA", raising=False)
        return reproduce(TINY, tmp_path_factory.mktemp("out"), size="quick", jobs=1)


@pytest.mark.parametrize("name", ["digits", "digits sorted by class"])
def test_waiting_for_fewer_takes_less_time_and_exact_codes_lose_nothing(done, name):
    found = rows(done, name)
    waits = [
        found[method]["s per iteration"]
        for method in ("ErasureHead", "exact gradient coding", "uncoded")
    ]
    assert waits == sorted(waits)
    exact, reference = found["exact gradient coding"], found["uncoded"]
    assert exact["last loss"] == pytest.approx(reference["last loss"], rel=1e-5)
    assert exact["mean error"] == reference["mean error"] == 0
    assert found["ErasureHead"]["mean error"] < found["uncoded, stragglers ignored"]["mean error"]


def test_copies_pay_where_partitions_differ(done):
    found = rows(done, "digits sorted by class")
    losses = {method: row["last loss"] for method, row in found.items()}
    assert abs(losses["ErasureHead"] - losses["uncoded"]) < abs(
        losses["uncoded, stragglers ignored"] - losses["uncoded"]
    )


def test_access_data_are_used_where_they_lie(tmp_path):
    lines = ["ACTION,RESOURCE,MGR_ID", *(f"{i % 2},{i % 5},{i % 7}" for i in range(60))]
    with gzip.open(tmp_path / "amazon_access.csv.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    done = reproduce(TINY, tmp_path / "out", data=tmp_path, size="default", jobs=1)
    assert "amazon_access.csv.gz" in done.findings.notes[0]
    assert len(done.findings.tables) == 3
