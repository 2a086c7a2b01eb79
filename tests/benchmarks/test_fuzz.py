"""The fuzzing scripts, for a moment: every format and kind of file, and what they must notice."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports a script of the benchmarks."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def test_every_wire_format_withstands_forged_messages(script, subtests):
    fuzz_wire = script("fuzz_wire")
    for name in fuzz_wire.FORMATS:
        with subtests.test(name):
            counts = fuzz_wire.fuzz(name, 15)
            assert counts["silent_wrong"] == counts["untyped"] == 0
            assert counts["refused"] + counts["accepted"] == 15


def test_forged_messages_that_are_taken_for_others_are_noticed(script):
    fuzz_wire = script("fuzz_wire")
    readers = {"silent_wrong": lambda data: data[:-1] + b"x", "untyped": lambda data: data[99]}
    for outcome, read in readers.items():
        case = fuzz_wire.Case([bytes(8)], read, ValueError)
        fuzz_wire.FORMATS["planted"] = [lambda case=case: case]
        assert fuzz_wire.judged("planted", fuzz_wire.Seeded("0"))[0] == outcome
        del fuzz_wire.FORMATS["planted"]


def test_every_kind_of_file_is_refused_or_read_right(script, tmp_path, subtests):
    fuzz_data = script("fuzz_data")
    for kind, (_, *case) in fuzz_data.CASES.items():
        with subtests.test(kind):
            counts = fuzz_data.fuzz(tmp_path, kind, 15, *case)
            assert counts["silent_wrong"] == counts["untyped"] == 0
            assert counts["refused"] >= 1 <= counts["equal"]


def test_a_file_that_is_read_otherwise_is_noticed(script, tmp_path):
    fuzz_data = script("fuzz_data")
    path, content = tmp_path / "table.csv", fuzz_data.table()
    path.write_bytes(content.replace(b"blue", b"grey"))
    source = fuzz_data.csv_source(path)
    assert fuzz_data.judged(path, path.read_bytes(), source, fuzz_data.as_table) == "equal"
    path.write_bytes(content.replace(b",0\n", b",2\n"))
    assert fuzz_data.judged(path, content, source, fuzz_data.as_table).startswith("silent_wrong")
