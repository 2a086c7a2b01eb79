"""Every stage of the round is an option of `phalanx train`."""

import json

import pytest

OPTIONS = {
    "LocalSteps": ["--compute", "LocalSteps", "--compute.num_steps", 2],
    "ClippedGradient": ["--compute", "ClippedGradient", "--compute.max_norm", 0.5],
    "ShuffleOnce": ["--order", "ShuffleOnce"],
    "GaussianNoise": ["--transforms+", "GaussianNoise", "--transforms.std", 0.001],
    "ServerMomentum": ["--step", "ServerMomentum", "--step.lr", 0.1],
}
STAGE = {
    "LocalSteps": "compute",
    "ClippedGradient": "compute",
    "ShuffleOnce": "order",
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
