"""The recipe on few workers and iterations."""

import gzip

import pytest

from phalanx.reproduce import ErasureHeads, reproduce
from phalanx.reproduce.base import Scope
from phalanx.reproduce.erasure_head import _dealt

TINY = ErasureHeads(num_workers=9, collected=4, iterations=12, seeds=2)
HELD = "Time to a loss: a class with stragglers alone"


def rows(done, title, descent="plain"):
    table = next(one for one in done.findings.tables if one.title == title)
    named = (dict(zip(table.headers, row, strict=True)) for row in table.rows)
    return {row["method"]: row for row in named if row["descent"] == descent}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PHALANX_DATA", raising=False)
        return reproduce(TINY, tmp_path_factory.mktemp("out"), size="quick", jobs=1)


def test_waiting_for_fewer_takes_less_time_and_exact_codes_lose_nothing(done):
    for title in (HELD, "Time to a loss: partitions alike"):
        for descent in ("plain", "accelerated"):
            found = rows(done, title, descent)
            waits = [
                found[method]["s per iteration"]
                for method in ("ErasureHead", "exact gradient coding", "uncoded")
            ]
            assert waits == sorted(waits)
            assert found["exact gradient coding"]["% above"] == pytest.approx(0, abs=1e-3)
            assert found["uncoded"]["% above"] == 0


def test_ignoring_stragglers_loses_what_they_alone_hold(done):
    found = {method: row["% above"] for method, row in rows(done, HELD).items()}
    assert abs(found["ErasureHead"]) < found["uncoded, stragglers ignored"]


def test_the_rarest_class_lies_with_persistent_stragglers_alone():
    cell = next(one for one in TINY.at("quick").cells(Scope()) if one.arguments["persistent"])
    for seed in range(3):
        _, targets, slow = _dealt(cell.arguments["data"], True, 9, seed)
        rarest = int(targets.sum(dim=0).argmin())
        shares = [part[:, rarest].sum().item() for part in targets.tensor_split(9)]
        assert {worker for worker, share in enumerate(shares) if share} == set(slow.tolist())


def test_the_tables_are_read_where_they_lie(tmp_path):
    for name, label in (("amazon_access", "ACTION"), ("covtype_15k", "Cover_Type")):
        lines = [f"{label},RESOURCE,MGR_ID", *(f"{i % 2},{i % 5},{i % 7}" for i in range(60))]
        with gzip.open(tmp_path / f"{name}.csv.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")
    done = reproduce(TINY, tmp_path / "out", data=tmp_path, size="default", jobs=1)
    assert done.findings.notes[0].startswith("Data: access and covtype")
