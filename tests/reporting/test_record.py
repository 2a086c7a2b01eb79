import json

import pytest

from phalanx.reporting import load_run


def test_a_whole_folder_is_read(make_run):
    record = load_run(make_run("a", title="DRACO", byzantine=(1,), suspects=(1,)))
    assert record.title == "DRACO"
    assert record.status == "finished"
    assert record.config == "steps: 4\n"
    assert record.environment["seed"] == 3
    assert [entry["step"] for entry in record.rounds] == [0, 1, 2, 3]
    assert record.num_workers == 9
    assert record.series("test_accuracy") == [(4, 0.964)]


def test_every_torn_last_line_is_ignored(make_run):
    folder = make_run("a", finished=False)
    whole = (folder / "metrics.jsonl").read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(whole) - 2):
        (folder / "metrics.jsonl").write_bytes(whole[:end])
        assert len(load_run(folder).rounds) == 3
    (folder / "metrics.jsonl").write_bytes(whole.rstrip(b"\n"))
    assert len(load_run(folder).rounds) == 4


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(make_run):
    folder = make_run("a")
    (folder / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"a: metrics.jsonl is broken in line 2"):
        load_run(folder)


def test_a_line_without_a_step_is_an_error(make_run):
    folder = make_run("a")
    (folder / "metrics.jsonl").write_text('{"loss": 1.0}\n{"step": 2}\n')
    with pytest.raises(ValueError, match="no step in line 1"):
        load_run(folder)


def test_a_step_written_twice_counts_as_written_last(make_run):
    folder = make_run("a")
    lines = [{"step": 0, "loss": 3.0}, {"step": 1, "loss": 9.0}, {"step": 1, "loss": 2.0}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert load_run(folder).series("loss") == [(1, 3.0), (2, 2.0)]


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e999", "null"])
def test_numbers_that_are_not_finite_read_as_not_measured(make_run, written):
    folder = make_run("a")
    (folder / "metrics.jsonl").write_text(f'{{"step": 0, "loss": {written}}}\n')
    assert load_run(folder).rounds == [{"step": 0, "loss": None}]


def test_empty_metrics_and_no_result_make_an_unfinished_run(make_run):
    folder = make_run("a", finished=False)
    (folder / "metrics.jsonl").write_text("")
    record = load_run(folder)
    assert (record.status, record.rounds, record.result) == ("unfinished", [], None)
    assert (record.title, record.num_workers, record.test_accuracy) == ("a", 0, None)


def test_config_and_environment_may_be_missing(make_run):
    folder = make_run("a")
    (folder / "config.yaml").unlink()
    (folder / "env.json").unlink()
    record = load_run(folder)
    assert (record.config, record.environment) == (None, {})


def test_what_is_missing_is_named(tmp_path, make_run):
    with pytest.raises(ValueError, match=r"nowhere is no run folder: there is no such directory"):
        load_run(tmp_path / "nowhere")
    folder = make_run("a")
    (folder / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"a: result.json is no JSON"):
        load_run(folder)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"a is no run folder: metrics.jsonl is missing"):
        load_run(folder)
