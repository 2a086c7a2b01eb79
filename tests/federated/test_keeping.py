"""Run folders of matched averaging and of prototypes: killed runs go on to the bit."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from federated.federations import federation
from federated.test_fedma import ALGORITHM, clients, mlp, same
from phalanx.errors import FolderInUseError, WorkerError
from phalanx.federated import (
    Distillation,
    FedDF,
    federate_prototypes,
    fedma,
    noise_inputs,
)
from phalanx.files import owned
from phalanx.models import MLP
from phalanx.reporting.record import load_run
from phalanx.stragglers import RecordedTrace
from phalanx.training import Local

TAUGHT = FedDF(unlabelled=noise_inputs((4,), 30), distillation=Distillation(num_steps=5))
TIMED = ("seconds",)


def matched(engine=Local(), rounds=4, data=None, **options):  # noqa: B008 - frozen
    algorithm = replace(ALGORITHM, rounds=rounds)
    models, data = [mlp(one, 9, 7) for one in range(3)], data or clients()
    return fedma(models, data, algorithm, test=data[0], engine=engine, **options)


def prototypes(rounds=4, **options):
    dealt = federation((8, 9, 10, 11))
    makers = [lambda width=width: MLP((4,), 3, hidden=[width]) for width in (5, 8)]
    common = {"rounds": rounds, "clients_per_round": 1, "test": dealt[0], **options}
    return federate_prototypes(makers, [dealt[:2], dealt[2:]], TAUGHT, **common)


def killed(call, after):
    """Runs a call in a process that is killed once so many rounds are done."""

    def kill(entry):
        if entry["step"] + 1 == after:
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        try:
            call(on_round=kill)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def tensors(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_run_goes_on_to_the_bit(tmp_path, subtests):
    """Client 1 is late in two rounds, so that its own network is what it goes on from."""
    late = [[0, 0, 0], [0, 9, 0], [0, 0, 0]] * 2 + [[0, 0, 0]] * 6
    (tmp_path / "trace.csv").write_text("\n".join(",".join(map(str, row)) for row in late))
    engine = Local(delays=RecordedTrace(tmp_path / "trace.csv"), deadline_s=5.0)
    for name, run in (
        ("FedMA", lambda **options: matched(engine, progress=False, **options)),
        ("prototypes", lambda **options: prototypes(progress=False, **options)),
    ):
        whole = tmp_path / f"{name} whole"
        run(out=whole)
        for after, every in ((2, 1), (3, 2)):
            with subtests.test(name, after=after):
                out = tmp_path / f"{name} {after}"
                options = {"out": out, "checkpoint_every": every}
                killed(lambda run=run, options=options, **more: run(**options, **more), after)
                assert not (out / "result.json").exists()
                run(**options, resume=True)
                assert lines(out) == lines(whole)
                told = tensors(whole)
                assert all(told[key].equal(value) for key, value in tensors(out).items())


def test_the_folder_is_that_of_any_run(tmp_path):
    """It has a report, and a run may be given more rounds, but nothing else."""
    done = matched(rounds=1, out=tmp_path / "a", progress=False)
    more = matched(rounds=2, out=tmp_path / "a", resume=True, progress=False)
    assert [row["step"] for row in more.rounds] == [0, 1]
    assert same(more, matched(rounds=2, progress=False))
    assert done.rounds[0]["test_accuracy"] == more.rounds[0]["test_accuracy"]
    record = load_run(tmp_path / "a")
    assert record.is_federated
    assert record.title == "FedMA"
    assert record.test_accuracy == more.rounds[-1]["test_accuracy"]
    assert record.result["num_clients"] == 3
    assert [sum(one) for one in record.class_counts] == [40] * 3
    assert any("ICLR 2020" in one for one in record.result["methods"])
    with pytest.raises(ValueError, match=r"clients\.0.* was .* and is now"):
        matched(data=clients(size=30), out=tmp_path / "a", resume=True, progress=False)
    with pytest.raises(ValueError, match="rounds must be at least the 2 rounds that are done"):
        matched(rounds=1, out=tmp_path / "a", resume=True, progress=False)
    with pytest.raises(ValueError, match="out must be a new folder"):
        matched(out=tmp_path / "a", progress=False)
    with owned(tmp_path / "b"), pytest.raises(FolderInUseError):
        prototypes(out=tmp_path / "b", progress=False)


def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path):
    out = tmp_path / "run"
    prototypes(rounds=3, out=out, progress=False)
    newest = max((out / "checkpoints").glob("*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        prototypes(rounds=4, out=out, resume=True, progress=False)
    assert lines(out) == lines_of_whole(tmp_path)


def lines_of_whole(tmp_path):
    prototypes(rounds=4, out=tmp_path / "whole", progress=False)
    return lines(tmp_path / "whole")


def test_a_run_without_clients_is_stopped_with_its_last_network(tmp_path):
    """All are dead in the second round."""
    never = ["0,0,0"] * 3 + ["9,9,9"] * 3
    (tmp_path / "dead.csv").write_text("\n".join(never))
    engine = Local(delays=RecordedTrace(tmp_path / "dead.csv"), deadline_s=5.0)
    with pytest.raises(WorkerError, match="no client is left in round 1"):
        matched(engine, out=tmp_path / "run", progress=False)
    record = load_run(tmp_path / "run")
    assert record.status == "stopped"
    first = matched(engine, rounds=1, out=tmp_path / "one", progress=False)
    told = tensors(tmp_path / "run")
    assert all(told[key].equal(value) for key, value in first.model.state_dict().items())


def test_callbacks_see_the_network_as_it_grows():
    sizes = []

    def note(entry):
        sizes.append(entry["growth"])

    run = matched(rounds=2, on_round=note, progress=False)
    assert sizes == [row["growth"] for row in run.rounds]
    assert torch.tensor(sizes).isfinite().all()
