"""Damaged run folders: whatever is broken is noticed and named, and nothing else is lost."""

import random
import warnings

import pytest
import torch

import phalanx
from phalanx.attacks import Mixed
from phalanx.coding import DracoRepetition
from phalanx.errors import CheckpointError
from phalanx.files import Sealing
from phalanx.reporting import load_run
from phalanx.training.checkpoint import Checkpoint
from phalanx.training.run_folder import RunFolder


class Killed(BaseException):
    """Ends a run between two rounds, as a kill would."""


@pytest.fixture
def go(blobs, make_model, tmp_path):
    def run(name="a", *, kill=None, **options):
        def watch(entry):
            if entry["step"] == kill:
                raise Killed

        options = {"steps": 14, "checkpoint_every": 4, "batch_size": 36, "seed": 2, **options}
        optimizer = {"optimizer": lambda some: torch.optim.Adam(some, lr=0.01)}
        return phalanx.train(
            make_model(),
            blobs[0],
            DracoRepetition(6, 1),
            attack=Mixed(),
            out=tmp_path / name,
            on_round=watch,
            **{**optimizer, **options},
        )

    return run


@pytest.fixture
def killed(go, tmp_path):
    """A run that was killed in round 9: checkpoints of rounds 4 and 8."""
    with pytest.raises(Killed):
        go(kill=9)
    return tmp_path / "a"


def bits(run):
    return (run.folder / "model.safetensors").read_bytes()


def steps(run):
    return [entry["step"] for entry in load_run(run.folder).rounds]


def damages(good, number, source):
    """Flipped bits, cut files, bytes overwritten and added, in turn."""
    for count in range(number):
        data = bytearray(good)
        place = source.randrange(len(data))
        if count % 4 == 0:
            data[place] ^= 1 << source.randrange(8)
        elif count % 4 == 1:
            del data[place:]
        elif count % 4 == 2:
            data[place : place + 64] = source.randbytes(len(data[place : place + 64]))
        else:
            data[place:place] = source.randbytes(1 + source.randrange(64))
        if bytes(data) != good:
            yield bytes(data)


def test_every_damage_is_noticed_and_the_older_checkpoint_taken(killed):
    older, newest = sorted((killed / "checkpoints").iterdir())
    good, seen = newest.read_bytes(), 0
    for damaged in damages(good, 240, random.Random(1)):
        newest.write_bytes(damaged)
        with pytest.warns(UserWarning, match=f"damaged checkpoint: .*{newest.name}.*{older.name}"):
            assert RunFolder(killed, resume=True).load_checkpoint().step == 4
        seen += 1
    assert seen >= 200
    newest.write_bytes(good)
    assert RunFolder(killed, resume=True).load_checkpoint().step == 8


def test_a_run_goes_on_from_the_older_checkpoint_and_keeps_the_damaged_one_aside(go, killed):
    newest = sorted((killed / "checkpoints").iterdir())[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        resumed = go(resume=True)
    whole = go("whole")
    assert bits(resumed) == bits(whole)
    assert steps(resumed) == list(range(14))
    aside = killed / "checkpoints" / (newest.name + ".damaged")
    assert aside.read_bytes() == data


def sealed(path, content):
    with path.open("wb") as file:
        sealing = Sealing(file)
        torch.save(content, sealing)
        sealing.seal()


def test_what_is_no_checkpoint_is_noticed_whatever_it_is(killed, subtests):
    newest = sorted((killed / "checkpoints").iterdir())[-1]
    good = RunFolder(killed, resume=True).load_checkpoint().content()
    assert Checkpoint.read(good).step == 8
    others = {
        "text": lambda: newest.write_text("not a checkpoint at all\n"),
        "nothing": lambda: newest.write_bytes(b""),
        "a dict of torch": lambda: torch.save({"a": 1}, newest),
        "without a digest": lambda: torch.save(good, newest),
        "a folder": lambda: (newest.unlink(), newest.mkdir()),
        "sealed text": lambda: sealed(newest, "text"),
        "sealed, without keys": lambda: sealed(newest, {}),
        **{
            f"sealed, {name} of another type": lambda name=name: sealed(newest, {**good, name: 1j})
            for name in good
            if name != "server_step"
        },
        **{
            f"sealed, without {name}": lambda name=name: sealed(
                newest, {key: one for key, one in good.items() if key != name}
            )
            for name in good
        },
    }
    for name, write in others.items():
        with subtests.test(name):
            if newest.is_dir():
                newest.rmdir()
            write()
            with pytest.warns(UserWarning, match="damaged checkpoint"):
                assert RunFolder(killed, resume=True).load_checkpoint().step == 4


def test_a_checkpoint_that_does_not_fit_is_a_named_error(go, killed, subtests):
    for path in (killed / "checkpoints").iterdir():
        path.unlink()
    newest = killed / "checkpoints" / "step-000000008.pt"
    with pytest.raises(ValueError, match="no checkpoint in it"):
        go(resume=True)
    wrong = {"server_step": {}, "parameters": torch.zeros(3), "attack": {}, "standing": []}
    assert go("other", steps=8).folder
    good = RunFolder(killed.parent / "other", resume=True).load_checkpoint().content()
    for name, value in wrong.items():
        with subtests.test(name):
            sealed(newest, {**good, name: value})
            with pytest.raises(CheckpointError, match="does not hold what this run needs"):
                go(resume=True)


def test_where_no_checkpoint_is_whole_all_are_named(go, killed):
    for path in (killed / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"step-000000008\.pt: .*step-000000004\.pt: "):
        go(resume=True)
    names = {path.name for path in (killed / "checkpoints").iterdir()}
    assert names == {"step-000000004.pt", "step-000000008.pt"}


LINES = ["[]", "{}", "12", '"a"', "null", '{"step": null}', '{"step": "x"}', '{"step": 1e999}']
LINES += ['{"step": true, "loss": 1}', "[" * 5000, '{"step": 25, "lo', "\0" * 50, "\udc80\udc81"]


def test_lines_that_are_no_round_are_left_out(go, killed, subtests):
    metrics = killed / "metrics.jsonl"
    good = metrics.read_bytes()
    for line in LINES:
        with subtests.test(ascii(line[:20])):
            first, rest = good.split(b"\n", 1)
            odd = line.encode(errors="surrogateescape")
            metrics.write_bytes(first + b"\n" + odd + b"\n" + rest + odd)
            folder = RunFolder(killed, resume=True)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert [entry["step"] for entry in folder.truncate(8)] == list(range(8))


def test_rounds_that_are_lost_are_told_and_the_file_is_kept(go, killed, subtests):
    metrics, whole = killed / "metrics.jsonl", bits(go("whole"))
    good = metrics.read_text().splitlines(keepends=True)
    torn = [*good[:3], good[3][:40] + "\n", *good[4:]]
    metrics.write_text("".join(torn))
    with pytest.warns(UserWarning, match="metrics of 1 rounds, first 3, are lost"):
        resumed = go(resume=True)
    assert bits(resumed) == whole
    assert steps(resumed) == [0, 1, 2, *range(4, 14)]
    assert resumed.result["message_bytes"] is None  # not a sum of what is left
    assert (killed / "metrics.jsonl.damaged").read_text() == "".join(torn)


def test_a_run_without_its_metrics_goes_on(go, killed):
    (killed / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="holds a run"):  # it is not begun anew, either
        go()
    with pytest.warns(UserWarning, match="metrics of 8 rounds, first 0, are lost"):
        resumed = go(resume=True)
    assert bits(resumed) == bits(go("whole"))
    assert steps(resumed) == list(range(8, 14))


def test_metrics_that_are_a_folder_are_refused(go, killed):
    (killed / "metrics.jsonl").unlink()
    (killed / "metrics.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"metrics\.jsonl must be a file"):
        go(resume=True)


def test_an_old_accuracy_is_not_the_final_one(go, killed, blobs):
    go(resume=True, test=blobs[1], evaluate_every=5)
    metrics = killed / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:10]))
    with pytest.warns(UserWarning, match="metrics of 4 rounds"):
        again = go(resume=True, test=blobs[1], evaluate_every=5)
    assert again.rounds[-1]["step"] == 9
    fresh = go("whole", test=blobs[1])
    assert again.result["test_loss"] == fresh.result["test_loss"]
