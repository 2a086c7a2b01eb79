"""Callbacks, early stopping, metrics and validation: what a run tells, and who may end it."""

import json
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import l1_loss, mse_loss
from torch.optim import SGD
from torch.utils.data import TensorDataset

import phalanx
from phalanx.aggregation import Krum
from phalanx.attacks import FixedWorkers, Silence
from phalanx.coding import DracoRepetition
from phalanx.errors import DecodeError
from phalanx.training import Callback, EarlyStopping, Local
from training.drifting import a_model, flat, some_data


def trained(model=None, data=None, **options):
    usual = {"steps": 8, "num_workers": 7, "batch_size": 28, "evaluate_every": 2}
    return phalanx.train(model or a_model(), data or some_data(), **{**usual, **options})


class Diary(Callback):
    """Writes down what it is told, and stops the run when it is told to."""

    def __init__(self, stop_after=None):
        self.stop_after, self.told, self.seen = stop_after, [], 0

    def on_start(self, run):
        self.told.append(("start", run.done, run.steps))

    def on_round(self, run, entry):
        self.seen += 1
        self.told.append(("round", run.done, entry["step"]))
        if self.seen == self.stop_after:
            run.stop("enough is written")

    def on_evaluation(self, run, entry):
        self.told.append(("evaluation", run.done))

    def on_last_round(self, run):
        assert run.result == {}
        self.told.append(("last round", run.done))

    def on_end(self, run):
        self.told.append(("end", bool(run.result)))

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state.get("seen", 0)


def test_callbacks_are_told_in_order():
    diary = Diary()
    trained(steps=3, test=some_data(), callbacks=[diary])
    rounds = [("round", 1, 0), ("round", 2, 1), ("evaluation", 2), ("round", 3, 2)]
    end = [("evaluation", 3), ("last round", 3), ("end", True)]
    assert diary.told == [("start", 0, 3), *rounds, *end]


def test_a_callback_stops_the_run_with_everything_written(tmp_path):
    run = trained(callbacks=[Diary(stop_after=3)], test=some_data(), out=tmp_path / "a")
    assert (run.done, run.stopped_by) == (3, "enough is written")
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert (result["rounds"], result["stopped_by"]) == (3, "enough is written")
    assert result["stopped"] is None
    assert result["test_accuracy"] is not None
    assert (tmp_path / "a" / "checkpoints" / "step-000000003.pt").is_file()
    assert (tmp_path / "a" / "model.safetensors").is_file()
    assert flat(run.model).equal(flat(trained(steps=3).model))


def test_what_a_callback_remembers_is_resumed(tmp_path):
    trained(callbacks=[Diary()], out=tmp_path / "a", steps=4)
    diary = Diary(stop_after=6)
    run = trained(callbacks=[diary], out=tmp_path / "a", resume=True)
    assert diary.told[0] == ("start", 4, 8)
    assert run.done == 6


def test_callbacks_are_ended_after_errors_too(tmp_path):
    diaries = [Diary(), Diary()]
    drill = {"attack": Silence(), "byzantine": FixedWorkers([0, 1, 2]), "batch_size": 9}
    with pytest.raises(DecodeError):
        trained(code=DracoRepetition(9, 1), callbacks=diaries, **drill)
    assert all(one.told[-1] == ("end", True) for one in diaries)

    class Broken(Callback):
        def on_start(self, run):
            raise ArithmeticError("seven is not eight")

    first, last = Diary(), Diary()
    with pytest.raises(ArithmeticError):
        trained(callbacks=[first, Broken(), last], out=tmp_path / "a")
    assert first.told[-1] == ("end", False)
    assert last.told == []
    assert not (tmp_path / "a").exists()


def diverging(**options):
    """Learns at first, then a rate that grows without end undoes it."""
    grows = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=1.9)
    usual = {"optimizer": partial(SGD, lr=0.05), "lr_scheduler": grows, "validation": 0.25}
    return trained(**{"evaluate_every": 1, "steps": 40, "batch_size": 28, **usual, **options})


def test_early_stopping_ends_the_run_with_the_best_weights(tmp_path):
    stopping = EarlyStopping("validation_loss", patience=3)
    run = diverging(callbacks=[stopping], out=tmp_path / "a")
    losses = [entry["validation_loss"] for entry in run.rounds]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert run.done == best + 4 < 40
    assert "EarlyStopping: validation_loss has not improved on" in run.result["stopped_by"]
    assert (stopping.best, stopping.best_round) == (losses[best], best + 1)
    assert run.result["evaluation"]["validation_loss"] == losses[best]
    assert flat(run.model).equal(flat(diverging(steps=best + 1).model))
    last = diverging(callbacks=[EarlyStopping(patience=3, restore_best_weights=False)])
    assert flat(last.model).equal(flat(diverging(steps=best + 4).model))


def test_early_stopping_goes_on_where_a_run_was_killed(tmp_path, subtests):
    def stopping():
        return [EarlyStopping(patience=3)]

    whole = diverging(callbacks=stopping())

    def kill(entry):
        if entry["step"] + 1 == middle:
            raise ArithmeticError("killed")

    for middle in range(1, whole.done + 1):
        with subtests.test(middle=middle):
            out = tmp_path / str(middle)
            with pytest.raises(ArithmeticError):
                diverging(callbacks=stopping(), out=out, checkpoint_every=2, on_round=kill)
            resumed = diverging(callbacks=stopping(), out=out, resume=True)
            assert resumed.done == whole.done
            assert flat(resumed.model).equal(flat(whole.model))
            assert resumed.result["stopped_by"] == whole.result["stopped_by"]
            again = diverging(callbacks=stopping(), out=out, resume=True)  # it stays stopped
            assert again.done == whole.done
            assert flat(again.model).equal(flat(whole.model))


def test_improvements_are_counted_as_the_mode_and_the_margin_say():
    def waited(values, **options):
        stopping = EarlyStopping("validation_accuracy", patience=9, **options)
        run = phalanx.Run(a_model(), evaluated=("validation_accuracy",))
        stopping.on_start(run)
        for value in values:
            stopping.on_evaluation(run, {"validation_accuracy": value})
        return stopping.waited

    assert waited([0.1, 0.2, 0.3], mode="max") == 0
    assert waited([0.1, 0.2, 0.3]) == 2
    assert waited([0.1, 0.15, 0.18, 0.25], mode="max", min_delta=0.1) == 0
    assert waited([0.5, math.nan, None, 0.6], mode="max") == 0
    assert waited([math.nan, math.nan]) == 2


class StreamedError:
    """The mean absolute error, as torchmetrics would compute it."""

    def reset(self):
        self.total, self.count = 0.0, 0

    def update(self, outputs, targets):
        self.total += (outputs - targets).abs().sum().item()
        self.count += targets.numel()

    def compute(self):
        return torch.tensor(self.total / self.count)

    def __call__(self, outputs, targets):
        raise AssertionError("an object with update is not called")


def a_regression(number=1500):
    inputs = torch.randn(number, 3, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, inputs @ torch.tensor([[1.0], [2.0], [-1.0]]))


def test_metrics_are_measured_over_the_whole_set_and_named(tmp_path):
    data = a_regression()

    def worst(outputs, targets):
        return (outputs - targets).abs().max()

    metrics = {"mae": l1_loss, "worst": worst, "streamed": StreamedError()}
    model = nn.Linear(3, 1)
    options = {"loss": mse_loss, "metrics": metrics, "test": data, "validation": 0.2}
    run = trained(model, data, out=tmp_path / "a", **options)
    with torch.no_grad():
        outputs = model(data.tensors[0])
    found = run.result["evaluation"]
    assert found["test_mae"] == pytest.approx(l1_loss(outputs, data.tensors[1]).item(), rel=1e-5)
    assert found["test_worst"] == pytest.approx(worst(outputs, data.tensors[1]).item(), rel=1e-5)
    assert found["test_streamed"] == pytest.approx(found["test_mae"], rel=1e-5)
    assert found["test_accuracy"] is None
    assert {"validation_mae", "validation_loss"} <= set(found)
    assert run.rounds[1]["test_mae"] > found["test_mae"]
    assert "test_mae=" in repr(run)


def test_a_share_is_held_out_by_the_seed_and_never_trained_on():
    data = TensorDataset(torch.arange(40.0).unsqueeze(1), torch.zeros(40, dtype=torch.int64))
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 2)

        def forward(self, inputs):
            seen.append((self.training, set(inputs.flatten().tolist())))
            return self.layer(inputs)

    options = {"num_workers": 2, "batch_size": 30, "steps": 2, "engine": Local(chunk_size=1)}
    run = phalanx.train(Spy(), data, validation=0.25, **options)
    learnt = set().union(*(found for training, found in seen if training))
    held = set().union(*(found for training, found in seen if not training))
    assert len(held) == 10
    assert learnt | held == set(range(40))
    assert not learnt & held
    assert run.result["evaluation"].keys() == {"validation_accuracy", "validation_loss"}


def test_a_run_says_what_it_came_to(tmp_path):
    drill = {"attack": Silence(), "byzantine": FixedWorkers([1])}
    run = trained(rule=Krum(1), test=some_data(), out=tmp_path / "a", **drill)
    text = repr(run)
    assert text.startswith("Run(steps=8, loss=")
    assert f"test_accuracy={run.result['test_accuracy']:.4g}" in text
    assert "rounds_suspected={" in text
    assert f"folder='{tmp_path / 'a'}'" in text


def test_epochs_are_passes_over_the_data():
    per_epoch = len(some_data()) // 28
    assert trained(steps=None, epochs=2).done == 2 * per_epoch
    assert trained(steps=None, epochs=1 / per_epoch).done == 1


def test_a_metric_that_is_no_number_is_named():
    options = {"test": some_data(), "metrics": {"many": lambda outputs, targets: outputs}}
    with pytest.raises(ValueError, match=r"metrics must return one number each, .* from 'many'"):
        trained(**options)
