"""Every stage of the round is an option of `phalanx train`."""

import json

import pytest

OPTIONS = {
    "LocalSteps": ["--compute", "LocalSteps", "--compute.num_steps", 2],
    "ClippedGradient": ["--compute", "ClippedGradient", "--compute.max_norm", 0.5],
    "TopAggGradient": ["--compute", "TopAggGradient", "--compute.share", 0.1],
    "ShuffleOnce": ["--order", "ShuffleOnce"],
    "PoissonSampling": ["--order", "PoissonSampling"],
    "GaussianNoise": ["--transforms+", "GaussianNoise", "--transforms.std", 0.001],
    "ServerMomentum": ["--step", "ServerMomentum", "--step.lr", 0.1],
}
STAGE = {
    "LocalSteps": "compute",
    "ClippedGradient": "compute",
    "TopAggGradient": "compute",
    "ShuffleOnce": "order",
    "PoissonSampling": "order",
    "GaussianNoise": "transforms",
    "ServerMomentum": "step",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_stage_is_an_option_that_trains(phalanx, tmp_path, name):
    out = tmp_path / "run"
    common = ["--num_workers", 3, "--batch_size", 24, "--steps", 2, "--out", out]
    code, _, errors = phalanx("train", *common, *OPTIONS[name])
    assert code == 0, errors
    result = json.loads((out / "result.json").read_text())
    assert result["rounds"] == 2
    assert f"{name}(" in result[STAGE[name]]


def test_all_stages_are_options_of_one_run(phalanx, tmp_path):
    out = tmp_path / "run"
    names = ["LocalSteps", "ShuffleOnce", "GaussianNoise", "ServerMomentum"]
    options = [word for name in names for word in OPTIONS[name]]
    common = ["--num_workers", 3, "--batch_size", 24, "--steps", 2, "--out", out]
    code, _, errors = phalanx("train", *common, *options)
    assert code == 0, errors
    result = json.loads((out / "result.json").read_text())
    assert all(f"{name}(" in result[STAGE[name]] for name in names)


def test_the_arithmetic_of_a_code_is_an_option(phalanx, tmp_path):
    out = tmp_path / "run"
    options = ["--code", "DracoCyclic", "--code.num_workers", 5, "--code.num_byzantine", 1]
    common = ["--attack", "ReverseGradient", "--steps", 2, "--out", out]
    code, _, errors = phalanx("train", *options, "--code.arithmetic", "field", *common)
    assert code == 0, errors
    result = json.loads((out / "result.json").read_text())
    assert "arithmetic='field'" in result["decoder"]
    code, _, errors = phalanx("train", *options, "--code.arithmetic", "exact", *common)
    assert code == 2
    assert "arithmetic" in errors


def test_private_training_is_an_option_and_says_what_it_spent(phalanx, tmp_path):
    pytest.importorskip("dp_accounting", reason="needs the extra phalanx[private]")
    out = tmp_path / "run"
    private = [
        "--privacy.epsilon",
        50,
        "--privacy.noise_multiplier",
        1.0,
        "--privacy.method",
        "rdp",
    ]
    common = ["--num_workers", 3, "--batch_size", 24, "--steps", 2, "--out", out, *private]
    stages = [*OPTIONS["ClippedGradient"], *OPTIONS["PoissonSampling"]]
    code, told, errors = phalanx("train", *common, *stages)
    assert code == 0, errors
    assert "neighbours add or remove one record; not counted:" in told
    (out / "privacy.jsonl").unlink()
    code, _, errors = phalanx("train", "--resume", out, "--steps", 3)
    assert code == 2
    assert "ledger" in errors
    assert "Traceback" not in errors
    code, _, errors = phalanx("train", *common[:-6], "--out", tmp_path / "other", *private)
    assert code == 2
    assert "ClippedGradient" in errors
