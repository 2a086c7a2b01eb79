"""Full disks, two processes on one folder, signals and lost engines: errors by name, exit codes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

TIMEOUT_S = 100
RUN = ["--code", "DracoRepetition", "--code.num_workers", "6", "--code.num_byzantine", "1"]
RUN += ["--attack", "Mixed", "--checkpoint_every", "5"]


def finish(process):
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err


def await_lines(process, path, number):
    """Waits until the run has written so many rounds."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.002)
    raise AssertionError(f"the run ended before round {number}: {process.communicate()}")


def one_line(err):
    return err.startswith("phalanx: ") and err.count("\n") == 1


@pytest.mark.slow
def test_other_arguments_are_one_line_and_leave_all_as_it_is(phalanx, tmp_path):
    assert phalanx("train", *RUN, "--steps", 3, "--out", "a")[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for words, told in {
        "--seed 4": "seed was 0 and is now 4",
        "--code.num_byzantine 0": "code.num_byzantine was 1 and is now 0",
        "--optimizer Adam --optimizer.lr 0.1": "step.optimizer.0 was SGD",
        "--optimizer.lr 0.2": "lr was 0.1 and is now 0.2",
        "--attack null --byzantine null": "attack was Mixed",
        "--batch_size 60": "batch_size was",
        "--model.hidden [9]": "model.",
        "--data.test_fraction 0.5": "dataset.length was",
    }.items():
        code, out, err = phalanx("train", "--resume", "a", "--steps", 4, *words.split())
        assert (code, out) == (2, ""), words
        assert one_line(err), err
        assert told in err
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert phalanx("train", "--resume", "a", "--steps", 4)[0] == 0
    words = ["--optimizer.lr", "0.2", "--changes", "[lr]"]
    assert phalanx("train", "--resume", "a", "--steps", 5, *words)[0] == 0
    assert "changes: []" in (tmp_path / "a" / "config.yaml").read_text()
    assert phalanx("train", "--resume", "a", "--steps", 6)[0] == 0


def test_damaged_checkpoints_are_one_line(phalanx, tmp_path):
    assert phalanx("train", *RUN, "--steps", 3, "--out", "a")[0] == 0
    for path in (tmp_path / "a" / "checkpoints").iterdir():
        path.write_text("text")
    code, _, err = phalanx("train", "--resume", "a", "--steps", 4)
    assert code == 2
    assert one_line(err)
    assert "no checkpoint of a is whole: " in err


def test_a_folder_of_another_host_is_one_line(phalanx, tmp_path):
    who = json.dumps({"process": 7, "host": "elsewhere", "since": "noon"})
    for folder in ("run", "compared", "found/draco"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / ".owner").write_text(who)
    for line in (
        "train --steps 1 --out run",
        "compare --steps 1 --out compared",
        "reproduce draco --size quick --out found",
    ):
        code, _, err = phalanx(*line.split())
        assert code == 2, line
        assert one_line(err), err
        assert "belongs to process 7 on elsewhere" in err


@pytest.mark.slow
def test_a_living_run_is_neither_resumed_nor_begun_anew_nor_its_report_redrawn(start, tmp_path):
    living = start("train", *RUN, "--steps", 100_000, "--out", "a")
    await_lines(living, tmp_path / "a" / "metrics.jsonl", 6)
    code, _, err = finish(start("train", "--resume", "a"))
    assert code == 2
    assert one_line(err)
    assert f"a belongs to process {living.pid} on " in err
    assert finish(start("train", *RUN, "--steps", 9, "--out", "a"))[0] == 2
    assert not (tmp_path / "a" / "report.html").exists()
    living.kill()
    living.communicate()
    done = len((tmp_path / "a" / "metrics.jsonl").read_bytes().splitlines())
    code, _, err = finish(start("train", "--resume", "a", "--steps", done + 9))
    assert code == 0, err
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(done + 9))


@pytest.mark.slow
def test_of_two_that_begin_together_one_is_refused(start, tmp_path):
    both = [start("train", *RUN, "--steps", 60, "--out", "a") for _ in range(2)]
    ended = [finish(one) for one in both]
    codes = sorted(code for code, _, _ in ended)
    assert codes == [0, 2], ended
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(60))
    assert finish(start("train", *RUN, "--steps", 60, "--out", "whole"))[0] == 0
    weights = [(tmp_path / one / "model.safetensors").read_bytes() for one in ("a", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["compare --seeds [0,1,2,3,4,5] --jobs 1", "reproduce draco --size quick"]
)
def test_comparisons_and_reproductions_have_one_owner_each(start, tmp_path, command):
    words = [*command.split(), "--out", "a"]
    first = start(*words)
    end = time.monotonic() + TIMEOUT_S
    while not list(tmp_path.glob("a/**/.owner")):
        assert time.monotonic() < end
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    code, _, err = finish(start(*words))
    assert code == 2
    assert f"belongs to process {first.pid} on " in err


def small_files(number):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))

    return limit


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(start, tmp_path):
    assert finish(start("train", *RUN, "--steps", 30, "--out", "whole"))[0] == 0
    assert finish(start("train", *RUN, "--steps", 10, "--out", "a"))[0] == 0
    checkpoint = tmp_path / "a" / "checkpoints" / "step-000000010.pt"
    size, good = checkpoint.stat().st_size, checkpoint.read_bytes()
    lines = (tmp_path / "a" / "metrics.jsonl").stat().st_size
    for number in (lines + 100, size // 2, size - 10):  # in metrics; in a checkpoint; in its digest
        process = subprocess.Popen(
            [sys.executable, "-m", "phalanx", "train", "--resume", "a", "--steps", "30"],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=small_files(number),
        )
        code, _, err = finish(process)
        assert code == 1, err
        assert err.startswith("phalanx: stopped: a/")
        assert "could not be written: File too large" in err
        assert "Go on with: phalanx train --resume a" in err
        assert "Traceback" not in err
        assert checkpoint.read_bytes() == good
        assert list((tmp_path / "a").rglob(".*")) == []
    assert finish(start("train", "--resume", "a", "--steps", "30"))[0] == 0
    weights = [(tmp_path / one / "model.safetensors").read_bytes() for one in ("a", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_sigterm_at_any_time_is_an_interruption(start, tmp_path):
    codes = set()
    for number, wait_s in enumerate([1.5, 2.5, 3.0, 3.5, 4.0, 5.0]):
        process = start("train", *RUN, "--steps", 100_000, "--out", f"a{number}")
        time.sleep(wait_s)
        process.terminate()
        code, _, err = finish(process)
        codes.add(code)
        assert "Traceback" not in err
        # Killed while Python starts; by itself where that broke off code given as text, as
        # dataclasses have: CPython then ends as if nobody had caught the interruption.
        assert code in (130, -signal.SIGTERM, -signal.SIGINT), err
        if code == 130:
            assert err.startswith("phalanx: interrupted")
        assert list(tmp_path.rglob(".*")) == []
    assert 130 in codes


RAYLET = """
import os, signal, sys, threading, time
from phalanx.cli import main

def kill():
    from pathlib import Path
    import ray
    from phalanx.training.engines.ray_connection import raylet_process
    metrics = Path("a/metrics.jsonl")
    while not metrics.exists() or metrics.read_bytes().count(b"\\n") < 7:
        time.sleep(0.01)
    os.kill(raylet_process(ray), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_lost_raylet_ends_the_run_and_loses_nothing(start, tmp_path):
    pytest.importorskip("ray")
    words = ["train", *RUN, "--engine", "Ray", "--steps", "40", "--out", "a"]
    done = subprocess.run(
        [sys.executable, "-c", RAYLET, *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1
    if done.stderr:  # Ray may end the process itself before anything can be said
        gone = "phalanx: stopped: the engine Ray is gone: its process on this machine"
        assert gone in done.stderr
        assert "Go on with: phalanx train --resume a" in done.stderr
    assert "Traceback" not in done.stderr
    local = ["--engine", "Local", "--engine.chunk_size", "1"]
    code, _, err = finish(start("train", "--resume", "a", *local))
    assert code == 0, err
    assert finish(start("train", *RUN, "--steps", "40", *local, "--out", "whole"))[0] == 0
    weights = [(tmp_path / one / "model.safetensors").read_bytes() for one in ("a", "whole")]
    assert weights[0] == weights[1]
