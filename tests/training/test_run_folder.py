"""What a run leaves on disk, and what becomes of it after faults of machine and disk."""

import json
import os
import signal
import stat
import threading
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import phalanx
from phalanx.aggregation import CenteredClipping
from phalanx.attacks import Mixed
from phalanx.coding import Detox, DracoCyclic, DracoRepetition
from phalanx.errors import FolderInUseError
from phalanx.reporting import load_run
from phalanx.training import Local

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


@pytest.fixture
def trained(blobs, make_model, tmp_path):
    """Runs 15 rounds in a folder of this name, unless told otherwise."""

    def run(name, model=None, **options):
        options = {"steps": 15, "batch_size": 36, "checkpoint_every": 4, **options}
        code = options.pop("code", DracoRepetition(9, 1))
        return phalanx.train(
            model or make_model(),
            blobs[0],
            code,
            attack=Mixed(),
            test=blobs[1],
            out=tmp_path / name,
            **options,
        )

    return run


class Killed(BaseException):
    """Ends a run between two rounds, as a kill would."""


def killed_at(step):
    def watch(entry):
        if entry["step"] == step:
            raise Killed

    return watch


def bits(run):
    return (run.folder / "model.safetensors").read_bytes()


def steps(run):
    return [entry["step"] for entry in load_run(run.folder).rounds]


def test_the_folder_holds_what_the_readers_need(trained, make_model):
    run = trained("a", title="nine workers", config="steps: 15\n", evaluate_every=5)
    names = {path.name for path in run.folder.iterdir()}
    files = {"config.yaml", "env.json", "run.json", "metrics.jsonl", "result.json"}
    assert names == {*files, "model.safetensors", "checkpoints"}
    assert (run.folder / "config.yaml").read_text() == "steps: 15\n"
    record = load_run(run.folder)
    assert record.rounds == run.rounds
    assert record.result == run.result
    assert record.status == "finished"
    assert record.title == "nine workers"
    assert record.environment["torch"] == torch.__version__
    assert record.environment["seed"] == 0
    measured = [entry["step"] for entry in run.rounds if "test_accuracy" in entry]
    assert measured == [4, 9, 14]
    assert set(run.rounds[0]) == {
        *("step", "loss", "seconds", "compute_seconds", "virtual_seconds", "decode_seconds"),
        *("byzantine", "suspects", "outliers", "missing", "residual", "error", "suspicion"),
        *("excluded", "message_bytes", "broadcast_bytes", "epoch", "lr", "saturated"),
    }
    assert run.result["num_workers"] == 9
    assert run.result["redundancy"] == 3.0
    assert any("DRACO" in source for source in run.result["methods"])
    saved = load_file(run.folder / "model.safetensors")
    model = make_model()
    model.load_state_dict(saved)
    torch.testing.assert_close(dict(model.named_parameters()), dict(run.model.named_parameters()))


def test_everybody_who_may_read_the_folder_may_read_the_weights(trained):
    run = trained("a", steps=2)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in run.folder.glob("*.*")}
    assert len(modes) == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("step", [0, 3, 4, 10, 14])
def test_a_run_resumed_from_python_ends_with_the_bits_of_one_that_never_stopped(
    trained, optimizer, step
):
    whole = trained("whole", optimizer=optimizer)
    with pytest.raises(Killed):
        trained("killed", optimizer=optimizer, on_round=killed_at(step))
    resumed = trained("killed", optimizer=optimizer, resume=True)
    assert bits(resumed) == bits(whole)
    assert steps(resumed) == steps(whole) == list(range(15))
    for one, other in zip(whole.rounds, resumed.rounds, strict=True):
        assert one["loss"] == other["loss"]
        assert one["suspects"] == other["suspects"]


def test_groups_and_memory_of_detox_resume_to_the_same_bits(trained):
    options = {"code": Detox(9, 1, outer=CenteredClipping()), "steps": 9}
    whole = trained("whole", **options)
    with pytest.raises(Killed):
        trained("killed", on_round=killed_at(5), **options)
    assert bits(trained("killed", resume=True, **options)) == bits(whole)


def test_random_layers_and_batch_norm_resume_to_the_same_bits(trained, make_model):
    def model():
        return make_model(nn.BatchNorm1d(12), nn.Dropout(0.3))

    options = {"code": DracoCyclic(9, 2)}
    whole = trained("whole", model(), **options)
    with pytest.raises(Killed):
        trained("killed", model(), on_round=killed_at(9), **options)
    assert bits(trained("killed", model(), resume=True, **options)) == bits(whole)


def test_more_steps_go_on_from_the_end(trained):
    trained("a", steps=7)
    assert bits(trained("a", steps=15, resume=True)) == bits(trained("whole"))


def test_a_finished_run_stays_as_it_is(trained):
    run = trained("a")
    before = bits(run)
    rounds = load_run(run.folder).rounds
    again = trained("a", resume=True)
    assert bits(again) == before
    assert load_run(run.folder).rounds == rounds
    assert again.result == run.result


def test_fewer_steps_than_done_are_refused(trained):
    run = trained("a")
    with pytest.raises(ValueError, match="steps must be at least the 15 rounds that are done"):
        trained("a", steps=10, resume=True)
    assert load_run(run.folder).status == "finished"


def test_another_model_is_refused(trained):
    trained("a")
    with pytest.raises(ValueError, match=r"model\.parameters\.weight was null and is now"):
        trained("a", nn.Linear(6, 4), resume=True)


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(trained):
    run = trained("a")
    before = bits(run)
    with pytest.raises(ValueError, match="out must be a new folder"):
        trained("a", seed=4)
    assert bits(run) == before


def test_a_file_is_no_folder(trained, tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ValueError, match="which is a file"):
        trained("a")


@pytest.mark.parametrize("tail", [b'{"step": 9, "lo', b"\0\0\0\0", b'{"step": 9, "loss": \xff'])
def test_a_torn_line_of_metrics_is_dropped(trained, tail):
    whole = trained("whole")
    with pytest.raises(Killed):
        trained("a", on_round=killed_at(8))
    path = whole.folder.parent / "a" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + tail)
    resumed = trained("a", resume=True)
    assert steps(resumed) == list(range(15))
    assert bits(resumed) == bits(whole)


def test_half_written_files_of_a_kill_are_removed(trained, tmp_path):
    with pytest.raises(Killed):
        trained("a", on_round=killed_at(8))
    strays = [
        tmp_path / "a" / "checkpoints" / ".step-000000012.pt.4711.part",
        tmp_path / "a" / ".model.safetensors.4711.part",
    ]
    for stray in strays:
        stray.write_bytes(b"half")
    assert bits(trained("a", resume=True)) == bits(trained("whole"))
    assert not any(stray.exists() for stray in strays)


def test_two_checkpoints_are_kept(trained):
    run = trained("a")
    kept = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert kept == ["step-000000012.pt", "step-000000015.pt"]


def test_tied_weights_are_saved(trained):
    first = nn.Linear(6, 6)
    second = nn.Linear(6, 6)
    second.weight = first.weight
    run = trained("a", nn.Sequential(first, second), steps=2)
    saved = load_file(run.folder / "model.safetensors")
    assert saved["0.weight"].equal(saved["1.weight"])


def test_a_run_outside_of_the_main_thread_leaves_signals_alone(trained):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(trained("a", steps=2)))
    thread.start()
    thread.join(60)
    assert len(runs[0].rounds) == 2


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_waits_for_the_round_and_leaves_a_checkpoint(trained, tmp_path, number):
    def interrupt(entry):
        if entry["step"] == 5:
            os.kill(os.getpid(), getattr(signal, number))

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after 6 of 15 rounds; a checkpoint"):
        trained("a", on_round=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "a" / "checkpoints" / "step-000000006.pt").is_file()
    assert json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 5
    assert bits(trained("a", resume=True)) == bits(trained("whole"))


@dataclass(frozen=True)
class Terminated(Local):
    """Workers whose start is interrupted by SIGTERM."""

    def start(self, factory):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().start(factory)


def test_sigterm_before_the_first_round_leaves_nothing_behind(trained, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        trained("a", engine=Terminated())
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "a").exists()
    trained("a", steps=4)
    kept = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        trained("a", engine=Terminated(), resume=True)
    now = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert now == kept


def test_a_run_that_still_goes_on_is_not_resumed_beside_it(trained):
    refused = []

    def meanwhile(entry):
        if entry["step"] == 9:
            with pytest.raises(FolderInUseError, match=f"belongs to process {os.getpid()} on "):
                trained("a", resume=True)
            refused.append(entry)

    run = trained("a", on_round=meanwhile)
    assert len(refused) == 1
    assert steps(run) == list(range(15))
    assert bits(run) == bits(trained("whole"))


def test_what_is_left_of_a_run_can_be_resumed_though_its_environment_is_damaged(trained, tmp_path):
    trained("a", steps=4)
    for name in ("env.json", "run.json", "result.json"):
        (tmp_path / "a" / name).write_text("[")
    run = trained("a", resume=True)
    assert load_run(run.folder).environment["torch"] == torch.__version__
    assert bits(run) == bits(trained("whole"))
