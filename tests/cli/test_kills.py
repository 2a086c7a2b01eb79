"""Real processes, killed at any moment, end with the bits of the run that nobody touched."""

import json
import signal
import time

import pytest

TIMEOUT_S = 100
# Remembers more than SGD does, and so does what changes its learning rate.
ADAM = ["--optimizer", "Adam", "--optimizer.lr", "0.01", "--lr_scheduler", "OneCycleLR"]
ADAM += ["--lr_scheduler.max_lr", "0.02", "--lr_scheduler.total_steps", "401"]
RUN = [
    "--code",
    "DracoRepetition",
    "--code.num_workers",
    "9",
    "--code.num_byzantine",
    "1",
    "--attack",
    "Mixed",
    "--steps",
    "400",
    "--checkpoint_every",
    "7",
    "--evaluate_every",
    "50",
]


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


def ended(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    return (folder / "model.safetensors").read_bytes(), steps


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_killed_again_and_again_ends_with_the_same_bits(start, tmp_path):
    assert finish(start("train", *RUN, *ADAM, "--out", "whole"))[0] == 0
    words = ["train", *RUN, *ADAM, "--out", "killed"]
    for number in (1, 6, 7, 8, 60, 173, 311, 399):
        process = start(*words)
        await_lines(process, tmp_path / "killed" / "metrics.jsonl", number)
        process.send_signal(signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
        words = ["train", "--resume", "killed"]
    code, _, err = finish(start(*words))
    assert code == 0, err
    assert ended(tmp_path / "killed") == ended(tmp_path / "whole")
    assert ended(tmp_path / "whole")[1] == list(range(400))
    assert list((tmp_path / "killed").rglob(".*")) == []


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_resume(start, tmp_path):
    process = start("train", *RUN, "--steps", 100_000, "--out", "stopped")
    await_lines(process, tmp_path / "stopped" / "metrics.jsonl", 20)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "a checkpoint is written" in err
    assert "Go on with: phalanx train --resume stopped" in err
    assert "Traceback" not in err
    done = len((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines())
    newest = sorted((tmp_path / "stopped" / "checkpoints").iterdir())[-1]
    assert newest.name == f"step-{done:09d}.pt"
    total = done + 10
    assert finish(start("train", "--resume", "stopped", "--steps", total))[0] == 0
    assert finish(start("train", *RUN, "--steps", total, "--out", "whole"))[0] == 0
    assert ended(tmp_path / "stopped") == ended(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_federation_ends_with_the_same_bits(start, tmp_path):
    """With state of clients and of the server: control variates, and what compression left over."""
    run = ["--algorithm", "Scaffold", "--num_clients", "12", "--clients_per_round", "4"]
    run += ["--rounds", "120", "--checkpoint_every", "7", "--evaluate_every", "40"]
    run += ["--transforms+", "Compressed", "--transforms.compressor", "ErrorFeedback"]
    assert finish(start("federate", *run, "--out", "whole"))[0] == 0
    words = ["federate", *run, "--out", "killed"]
    for number in (2, 30, 71):
        process = start(*words)
        await_lines(process, tmp_path / "killed" / "metrics.jsonl", number)
        process.send_signal(signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
        words = ["federate", "--resume", "killed"]
    code, _, err = finish(start(*words))
    assert code == 0, err
    assert ended(tmp_path / "killed") == ended(tmp_path / "whole")
