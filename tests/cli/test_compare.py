"""`phalanx compare` as a user types it, and as it is killed."""

import json
import re
import signal
import time

import pytest

SMALL = ["--num_workers", 7, "--num_byzantine", 1, "--steps", 3]
PIPELINE = "--rules+ Pipeline --rules.before+ NearestNeighborMixing --rules.rule CoordinateMedian"
GRID = [
    *SMALL,
    *("--rules+", "Krum", *PIPELINE.split()),
    *("--attacks+", "SignFlip", "--attacks+", "ReverseGradient", "--attacks.scale", 10),
    *("--seeds", "[0]", "--jobs", 1),
]
TIMEOUT_S = 100


def cells(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.json")}


def test_compare_shows_the_table_and_goes_on_from_its_own_configuration(phalanx, tmp_path):
    code, out, err = phalanx("compare", *GRID, "--out", "a")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "NNM » CoordinateMedian" in text
    assert "had the best worst case" in text
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        *("cells", "config.yaml", "comparison.csv", "comparison.md", "comparison.html"),
    }
    before = cells(tmp_path / "a")
    assert len(before) == 3 * 3
    assert phalanx("compare", "--config", "a/config.yaml", "--out", "a")[1] == out
    assert cells(tmp_path / "a") == before
    words = ("--config", "a/config.yaml", "--seeds", "[0,1]", "--out", "a")
    assert phalanx("compare", *words)[0] == 0
    assert len(cells(tmp_path / "a")) == 2 * len(before)


def test_pipelines_and_splits_are_written_in_yaml(phalanx, tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "rules:\n"
        "- class_path: Pipeline\n"
        "  init_args:\n"
        "    before: [{class_path: Bucketing}, NearestNeighborMixing]\n"
        "    rule: Krum\n"
        "codes: [DracoRepetition]\n"
        "attacks: [{class_path: ALittleIsEnough, init_args: {z: 1.5}}]\n"
        "splits: [ShardPartitioner, {class_path: LongTailedPartitioner, init_args: {keep: 0.7}}]\n"
        "chains: [[{class_path: WorkerMomentum, init_args: {beta: 0.9}}]]\n"
        "num_workers: 11\nnum_byzantine: 1\nsteps: 2\nseeds: [3]\njobs: 1\n"
    )
    code, out, err = phalanx("compare", "--config", "grid.yaml", "--out", "a")
    assert (code, err) == (0, "")
    assert "Bucketing » NNM » Krum" in out
    assert "Test accuracy (%), LongTailedPartitioner(0.7)" in out
    assert "ALIE(1.5)" in out
    assert "n/a" in out


def test_without_out_a_folder_is_named_after_the_time(phalanx, tmp_path):
    assert phalanx("compare", *SMALL, "--attacks", "[]", "--rules+", "Mean", "--jobs", 1)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"compare-\d{8}-\d{6}", folder.name)


def test_failed_runs_are_shown_and_the_exit_code_says_so(phalanx, tmp_path):
    code, out, err = phalanx("compare", *GRID, "--rules+", "lab.MyBrokenRule", "--out", "a")
    assert code == 1
    assert "failed" in out
    assert err.startswith("phalanx: stopped: 3 runs failed, first MyBrokenRule, no attack")
    assert "Go on with: phalanx compare --config a/config.yaml --out a" in err


def await_cells(process, folder, number):
    """Waits until so many cells are done."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        if len(list((folder / "cells").glob("*.json"))) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"it ended before cell {number}: {process.communicate()}")


def figures(folder):
    """What was measured, but for the clock, by identity."""
    found = {}
    for path in (folder / "cells").glob("*.json"):
        content = json.loads(path.read_text())
        record = content["record"]
        found[content["identity"]] = {
            **{name: value for name, value in record.items() if name not in ("seconds", "values")},
            **{n: value for n, value in record["values"].items() if "seconds" not in n},
        }
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_comparison_killed_again_and_again_ends_with_the_same_figures(start, tmp_path):
    words = [*GRID, "--steps", 40, "--jobs", 2]
    assert start("compare", *words, "--out", "whole").wait(TIMEOUT_S) == 0
    for number in (0, 1, 5):
        process = start("compare", *words, "--out", "killed")
        if number:
            await_cells(process, tmp_path / "killed", number)
        else:
            time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
        assert process.wait(TIMEOUT_S) == -signal.SIGKILL
    kept = cells(tmp_path / "killed")
    process = start("compare", *words, "--out", "killed")
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    after = cells(tmp_path / "killed")
    assert {name: after[name] for name in kept} == kept
    assert list((tmp_path / "killed").rglob(".*")) == []


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(start, tmp_path):
    process = start("compare", *GRID, "--steps", 300, "--jobs", 2, "--out", "a")
    await_cells(process, tmp_path / "a", 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert re.search(r"interrupted; \d of 9 cells are done, which are kept", err)
    assert "Go on with: phalanx compare --config a/config.yaml --out a" in err
    assert "Traceback" not in err
    assert 2 <= len(cells(tmp_path / "a")) < 9
