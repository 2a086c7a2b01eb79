"""Every mistake is one line on stderr, exit code 2, before any work: nothing is left behind."""

import pytest

from phalanx.cli.main import COMMANDS

MISTAKES = {
    "train --code DracoCyclik": "nothing is called 'DracoCyclik'; did you mean DracoCyclic?",
    "train --rule Qwxyz": "nothing is called 'Qwxyz'; see `phalanx list`",
    "train --optimizer SGDD": "nothing is called 'SGDD'; did you mean SGD",
    "train --rule nowhere.MyRule": "No module named 'nowhere'",
    "train --rule json.JSONDecoder": "not correspond to a subclass of Aggregator",
    "train --code 5": "nothing is called '5'",
    "train --code.num_workers 5": "code must name a class before its fields",
    "train --steps abc": "steps must be a whole number, got abc",
    "train --steps 1.5": "steps must be a whole number, got 1.5",
    "train --batch_size x": "batch_size must be a whole number, got x",
    "train --steps 0": "steps must be at least 1, got 0",
    "train --num_workers 0": "num_workers must be at least 1, got 0",
    "train --batch_size 17": "batch_size must be a multiple of the 15 partitions, got 17",
    "train --code DracoCyclic --code.num_workers 5": "num_byzantine must be below num_workers / 2",
    "train --rule Krum --rule.num_byzantine 9": "num_byzantine must be below num_workers / 2",
    "train --code DracoCyclic --rule Krum": "a code or a rule, not both",
    "train --attack ReverseGradient": "does not say how many Byzantine workers it survives",
    "train --byzantine RandomWorkers": "needs attack",
    "train --transforms+ WorkerMomentum --transforms.beta 1": "beta must be at least 0 and below",
    "train --code DracoCyclic --order PerClient": "order PerClient needs a rule instead of a code",
    "train --attack Constant --attack.value nan": "value must be a number, got nan (write .nan)",
    "train --attack Constant --attack.value inf": "value must be a number, got inf (write .inf)",
    "train --attack Constant --attack.valu 2": "'valu' is not accepted",
    "train --model MLP --model.hidden abc": "hidden must be a list such as [1,2], got abc",
    "train --model ResNet18 --model.norm foo": "norm must be one of 'group', 'batch', got foo",
    "train --optimizer.lr -1": "Invalid learning rate",
    "train --optimizer LBFGS": "one gradient per step",
    "train --engine.chunk_size 0": "chunk_size must be at least 1, got 0",
    "train --data NpzFile --data.path nofile.npz": "nofile.npz: No such file",
    "train --config nofile.yaml": "nofile.yaml",
    "train --device tpuu": "device must be one that can be used here, got 'tpuu'",
    "train --device cuda:99": "device must be one that can be used here, got 'cuda:99'",
    "train --foo 3": "unrecognized arguments: --foo 3",
    "train --resume nope": "resume must name the folder of a run of `phalanx train`, got nope",
    "train --resume nope --out other": "out cannot be given with resume",
    "train --out /dev/null --steps 1": "out must be a folder, got /dev/null",
    "train --out /dev/null/x --steps 1": "/dev/null",
    "compare --rules+ Krumm": "nothing is called 'Krumm'; did you mean Krum?",
    "compare --splits+ ShardPartitoner": "nothing is called 'ShardPartitoner'; did you mean Shard",
    "compare --attacks+ SignFlip --attacks.factor 3": "'factor' is not accepted",
    "compare --attacks+ ReverseGradient --attacks.scale x": "scale must be a number, got x",
    "compare --splits+ DirichletPartitioner --splits.alpha -1": "alpha must be finite and above 0",
    "compare --steps 0": "steps must be at least 1, got 0",
    "compare --seeds 3": "seeds must be a list such as [1,2], got 3",
    "compare --seeds []": "seeds must name at least 1",
    "compare --jobs 0": "jobs must be at least 1, got 0",
    "compare --num_byzantine 8": "num_byzantine must be at least 0 and below num_workers / 2",
    "compare --batch_size 17": "batch_size must be a multiple of the 15 workers, got 17",
    "compare --optimizer.lr -1": "Invalid learning rate",
    "compare --data NpzFile --data.path nofile.npz": "nofile.npz: No such file",
    "compare --out /dev/null": "out must be a folder, got /dev/null",
    "compare --config nofile.yaml": "nofile.yaml",
    "demo --steps 0": "steps must be at least 1, got 0",
    "report": "arguments are required",
    "report nope": "nope is no run folder",
    "list foo": "names must be families or algorithms, got 'foo'; did you mean",
    "list Krumm": "names must be families or algorithms, got 'Krumm'; did you mean Krum",
    "emulate-links": "the following arguments are required: emulate-links.program",
    "emulate-links --bandwidth fast -- true": "bandwidth must be a bandwidth such as 100mbit",
    "emulate-links --num-ranks 0 -- true": "num_ranks must be from 1 to 250, got 0",
    "frobnicate": "invalid choice: 'frobnicate'",
    "": f"command must be one of {', '.join(COMMANDS)}",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(phalanx, tmp_path, line):
    code, out, err = phalanx(*line.split())
    assert code == 2
    assert out == ""
    assert err.startswith("phalanx: ")
    assert err.count("\n") == 1
    assert MISTAKES[line] in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_refused_before_the_data_is_read(phalanx, tmp_path):
    assert phalanx("train", "--steps", 1, "--out", "a")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    words = ("--data", "NpzFile", "--data.path", "nofile.npz")
    code, _, err = phalanx("train", "--steps", 1, "--out", "a", *words)
    assert code == 2
    assert "out must be a new folder, got a, which holds a run" in err
    assert "phalanx train --resume a" in err
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_refused_resume_leaves_the_saved_options_as_they_are(phalanx, tmp_path):
    assert phalanx("train", "--steps", 2, "--out", "a")[0] == 0
    before = (tmp_path / "a" / "config.yaml").read_text()
    for words in (("--steps", 0), ("--steps", 1), ("--batch_size", 17), ("--device", "tpuu")):
        assert phalanx("train", "--resume", "a", *words)[0] == 2
    assert (tmp_path / "a" / "config.yaml").read_text() == before
    assert phalanx("train", "--resume", "a", "--steps", 3)[0] == 0
    assert "steps: 3\n" in (tmp_path / "a" / "config.yaml").read_text()


def test_a_run_from_python_is_resumed_from_python(phalanx, tmp_path):
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    code, _, err = phalanx("train", "--resume", "a")
    assert code == 2
    assert "holds no config.yaml" in err
