"""Schedulers, callbacks, metrics and modules of the current folder, as a user types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ["--num_workers", 3, "--batch_size", 48, "--steps", 6, "--evaluate_every", 2]


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_scheduler_is_an_option_and_resumes_to_the_same_bits(phalanx, tmp_path):
    words = ["--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", 6]
    words += ["--max_grad_norm", 0.5, "--mixed_precision", "bf16", "--optimizer", "Adam"]
    assert phalanx("train", *SMALL, *words, "--out", "whole")[0] == 0
    assert phalanx("train", *SMALL, *words, "--steps", 3, "--out", "a")[0] == 0
    assert phalanx("train", "--resume", "a", "--steps", 6)[0] == 0
    rates = [entry["lr"] for entry in rows(tmp_path / "whole")]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 6
    assert [entry["lr"] for entry in rows(tmp_path / "a")] == rates
    weights = [(tmp_path / one / "model.safetensors").read_bytes() for one in ("a", "whole")]
    assert weights[0] == weights[1]
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert "MixedPrecision" in result["compute"]
    assert "ClippedStep" in result["step"]


@pytest.mark.slow
def test_early_stopping_metrics_and_epochs_are_options(phalanx, tmp_path):
    words = ["--num_workers", 3, "--batch_size", 48, "--epochs", 1, "--evaluate_every", 1]
    words += ["--validation", 0.2, "--callbacks+", "EarlyStopping", "--callbacks.patience", 1]
    words += ["--callbacks.mode", "max", "--callbacks.monitor", "validation_loss"]
    words += ["--metrics", '{"again": "torch.nn.functional.cross_entropy"}']
    code, out, err = phalanx("train", *words, "--out", "a")
    assert (code, err) == (0, "")
    assert "was stopped by EarlyStopping" in " ".join(out.split())
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["rounds"] == 2
    assert result["evaluation"]["test_again"] == pytest.approx(result["test_loss"], rel=1e-5)
    assert phalanx("train", "--resume", "a", "--epochs", 2)[0] == 0


@pytest.mark.slow
def test_a_module_in_the_current_folder_is_found_by_the_command(tmp_path):
    package = tmp_path / "mylab"
    package.mkdir()
    text = (Path(__file__).parent / "lab.py").read_text()
    (package / "rules.py").write_text(text)
    command = "from phalanx.cli import main; import sys; main(sys.argv[1:])"
    # As the installed command starts: its own folder is on the path, the current one is not.
    words = [
        "train",
        "--rule",
        "mylab.rules.MyRule",
        "--num_workers",
        "5",
        "--steps",
        "1",
        "--out",
        "a",
    ]
    script = tmp_path / "bin" / "phalanx"
    script.parent.mkdir()
    script.write_text(command)
    source = str(Path(__import__("phalanx").__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script), *words, "--out", "a"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["decoder"] == "MyRule(num_byzantine=2)"
