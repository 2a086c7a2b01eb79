"""Loggers hand on what stands in the metrics; each is tested where its library is installed."""

import importlib.util
import sys
import warnings

import pytest

import phalanx
from phalanx.training import (
    MLflowLogger,
    TensorBoardLogger,
    TrackioLogger,
    WandbLogger,
)
from phalanx.training.loggers import scalars
from training.drifting import a_model, some_data


def trained(*loggers, **options):
    usual = {"steps": 4, "num_workers": 7, "batch_size": 28, "evaluate_every": 2}
    options = {"test": some_data(), "callbacks": loggers, **usual, **options}
    with warnings.catch_warnings():  # of the libraries themselves
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return phalanx.train(a_model(), some_data(), title="a run", **options)


def expected(run, name):
    return {entry["step"] + 1: entry[name] for entry in run.rounds if entry.get(name) is not None}


def test_numbers_are_told_and_lists_are_counted():
    entry = {"step": 3, "loss": 0.5, "error": None, "suspects": [1, 2], "missing": {"4": "late"}}
    assert scalars(entry) == {"loss": 0.5, "num_suspects": 2, "num_missing": 1}


def test_tensorboard_has_a_curve_for_every_number(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "a"
    trained(TensorBoardLogger(), out=out, steps=2)
    run = trained(TensorBoardLogger(), out=out, resume=True)
    events = EventAccumulator(str(out))
    events.Reload()
    for name in ("loss", "test_accuracy", "lr"):
        curve = {one.step: one.value for one in events.Scalars(name)}
        assert curve == pytest.approx(expected(run, name))


def test_trackio_gets_the_rows(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="needs trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    run = trained(TrackioLogger(project="phalanx-test"))
    assert len(run.rounds) == 4
    assert list(tmp_path.rglob("*.db"))


def test_wandb_gets_the_rows(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = {"mode": "offline", "dir": str(tmp_path)}
    run = trained(WandbLogger(project="phalanx-test", options=options))
    assert len(run.rounds) == 4
    assert list(tmp_path.rglob("*.wandb"))


def test_mlflow_gets_the_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    if importlib.util.find_spec("sqlalchemy") is None:
        uri = (tmp_path / "mlruns").as_uri()
    logger = MLflowLogger(experiment="test", uri=uri)
    run = trained(logger)
    client = mlflow.MlflowClient(tracking_uri=uri)
    history = {one.step: one.value for one in client.get_metric_history(logger.run_id, "loss")}
    assert history == pytest.approx(expected(run, "loss"))
    assert client.get_run(logger.run_id).info.status == "FINISHED"


def test_a_library_that_is_not_there_is_named_before_the_first_round(monkeypatch, subtests):
    loggers = {
        "tensorboard": TensorBoardLogger(),
        "wandb": WandbLogger(),
        "trackio": TrackioLogger(),
        "mlflow": MLflowLogger(),
    }
    for name, logger in loggers.items():
        monkeypatch.setitem(sys.modules, name, None)
        kind = type(logger).__name__
        with subtests.test(name), pytest.raises(ImportError, match=f"{kind} needs {name}: pip"):
            trained(logger, on_round=lambda entry: pytest.fail("a round was computed"))
