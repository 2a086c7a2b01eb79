"""The commands as a user types them."""

import inspect
import json
import re
import subprocess
import sys

import pytest
from safetensors import safe_open

from phalanx.cli.console import console
from phalanx.cli.main import COMMANDS
from phalanx.cli.rooms import ROOMS
from phalanx.terminal import SafeConsole

EXAMPLE = [
    "--code",
    "DracoCyclic",
    "--code.num_workers",
    "9",
    "--code.num_byzantine",
    "2",
    "--attack",
    "ReverseGradient",
    "--steps",
    "30",
    "--seed",
    "3",
    "--evaluate_every",
    "15",
]


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_train_writes_a_run_folder_that_repeats_itself(phalanx, tmp_path):
    code, out, err = phalanx("train", *EXAMPLE, "--out", "runs/a")
    assert (code, err) == (0, "")
    assert "2 of 9 workers were Byzantine in every round and all were named" in " ".join(
        out.split()
    )
    folder = tmp_path / "runs" / "a"
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "env.json", "run.json", "metrics.jsonl", "checkpoints"),
        *("result.json", "model.safetensors", "report.html"),
    }
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in rounds] == list(range(30))
    assert json.loads((folder / "result.json").read_text())["test_accuracy"] > 0.8
    assert phalanx("train", "--config", folder / "config.yaml", "--out", "b")[0] == 0
    assert weights(tmp_path / "b") == weights(folder)
    again = (tmp_path / "b" / "config.yaml").read_text()
    assert again == (folder / "config.yaml").read_text()
    assert phalanx("train", "--config", folder / "config.yaml", "--seed", 4, "--out", "c")[0] == 0
    assert weights(tmp_path / "c") != weights(folder)


def test_without_out_a_folder_is_named_after_the_time(phalanx, tmp_path):
    assert phalanx("train", "--steps", 1)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}", folder.name)


@pytest.mark.slow
def test_texts_are_trained_on(phalanx, tmp_path):
    (tmp_path / "a.csv").write_text("label,text\n" + "good,a good film\nbad,no film\n" * 60)
    (tmp_path / "a.txt").write_text("to be or not to be " * 80)
    small = "--model.width 8 --model.depth 1 --model.num_heads 2 --steps 2"
    texts = f"--data LabelledTexts --data.path a.csv --data.length 4 --model TextClassifier {small}"
    coded = "--code DracoRepetition --code.num_workers 3 --code.num_byzantine 1 --attack LabelFlip"
    play = f"--data TextFile --data.path a.txt --data.length 5 --model GPT {small} --num_workers 3"
    for out, words in {
        "coded": f"{texts} {coded}",
        "play": f"{play} --transforms+ Compressed --transforms.compressor QSGD",
    }.items():
        code, _, err = phalanx("train", *words.split(), "--out", out)
        assert (code, err) == (0, "")
        result = json.loads((tmp_path / out / "result.json").read_text())
        assert 0 <= result["test_accuracy"] <= 1


def test_classes_of_ones_own_are_given_by_import_path(phalanx, tmp_path):
    words = "--rule lab.MyRule --model lab.MyModel --model.bias false --attack lab.MyAttack"
    code, _, err = phalanx("train", *words.split(), "--steps", 2, "--out", "a")
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["decoder"] == "MyRule(num_byzantine=2)"
    assert result["attack"] == "MyAttack(scale=100.0)"
    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as saved:
        assert list(saved.keys()) == ["1.weight"]
    assert phalanx("train", "--resume", "a", "--steps", 3)[0] == 0


def test_a_schedule_of_compression_is_an_option_and_is_resumed(phalanx, tmp_path):
    words = "--rule Mean --num_workers 4 --batch_size 64 --transforms+ Compressed"
    words += " --transforms.compressor Scheduled --transforms.compressor.inner TopK"
    words += " --transforms.compressor.inner.ratio 0.01 --transforms.compressor.start_step 1"
    words += " --transforms.compressor.warm_up_epochs 2 --transforms.compressor.steps_per_epoch 2"
    sent = []
    for steps, out in ((3, "a"), (6, "b")):
        assert phalanx("train", *words.split(), "--steps", steps, "--out", out)[0] == 0
    assert phalanx("train", "--resume", "a", "--steps", 6)[0] == 0
    for out in ("a", "b"):
        lines = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
        sent.append([json.loads(line)["message_bytes"] for line in lines])
    assert sent[0] == sent[1]
    assert sent[0][0] > sent[0][1] == sent[0][2] > sent[0][3] == sent[0][4] > sent[0][5]
    weights = [safe_open(tmp_path / out / "model.safetensors", "pt") for out in ("a", "b")]
    for name in weights[0].keys():  # noqa: SIM118  (it is no mapping)
        assert weights[0].get_tensor(name).equal(weights[1].get_tensor(name))
    bad = words.replace("inner TopK --transforms.compressor.inner.ratio 0.01", "inner PowerSGD")
    code, _, err = phalanx("train", *bad.split(), "--steps", 2, "--out", "c")
    assert code == 2
    assert "inner must have a ratio for a warm-up" in err


def test_momentum_and_data_of_the_workers_are_options(phalanx, tmp_path):
    words = "--rule CoordinateMedian --transforms+ WorkerMomentum --transforms.beta 0.5"
    words += " --order PerClient --order.partitioner LongTailedPartitioner"
    words += " --order.partitioner.keep 0.8 --order.partitioner.partitioner ShardPartitioner"
    words += " --steps 2 --out a"
    code, _, err = phalanx("train", *words.split())
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["transforms"] == "(WorkerMomentum(beta=0.5, form='average'),)"
    assert "LongTailedPartitioner(keep=0.8, partitioner=ShardPartitioner())" in result["order"]
    page = (tmp_path / "a" / "report.html").read_text()
    assert "LongTailedPartitioner(keep=0.8" in page
    assert "WorkerMomentum(beta=0.5" in page
    assert phalanx("train", "--resume", "a", "--steps", 3)[0] == 0
    assert phalanx("train", "--config", "a/config.yaml", "--steps", 3, "--out", "b")[0] == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.slow
def test_a_run_beyond_its_bound_says_how_to_go_on(phalanx, tmp_path):
    drill = "--byzantine SleeperWorkers --byzantine.workers [0,1,2,3] --byzantine.from_step 9"
    code, _, err = phalanx("train", *EXAMPLE, *drill.split(), "--out", "a")
    assert code == 1
    assert err.startswith("phalanx: stopped: ")
    assert "Go on with: phalanx train --resume a" in err
    assert "Traceback" not in err
    assert (tmp_path / "a" / "report.html").exists()
    assert json.loads((tmp_path / "a" / "result.json").read_text())["stopped"]
    ended = ("--byzantine", "null", "--changes", "[byzantine]")
    assert phalanx("train", "--resume", "a", *ended)[0] == 0
    assert phalanx("train", *EXAMPLE, "--out", "b")[0] == 0
    ended, whole = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert ended["stopped"] is None
    assert ended["test_accuracy"] == pytest.approx(whole["test_accuracy"], abs=0.01)


@pytest.mark.slow
def test_report_redraws_one_run_or_compares_several(phalanx, tmp_path):
    assert phalanx("train", *EXAMPLE, "--title", "liars", "--out", "runs/a")[0] == 0
    words = ["--num_workers", "9", "--steps", "30", "--seed", "3", "--title", "honest"]
    assert phalanx("train", *words, "--out", "runs/b")[0] == 0
    (tmp_path / "runs" / "a" / "report.html").unlink()
    code, out, _ = phalanx("report", "runs/a")
    assert (code, "runs/a/report.html" in out) == (0, True)
    assert (tmp_path / "runs" / "a" / "report.html").is_file()
    code, out, _ = phalanx("report", "runs/a", "runs/b")
    assert code == 0
    assert "liars ended with the weights of the run without Byzantine workers" in " ".join(
        out.split()
    )
    assert (tmp_path / "runs" / "comparison.html").is_file()
    words = ("--reference", "runs/b", "--out", "elsewhere.html")
    assert phalanx("report", "runs/a", *words)[0] == 0
    assert "honest" in (tmp_path / "elsewhere.html").read_text()


# Public classes that are no algorithms to choose from: they are not listed.
HELPERS = """
    AccordionBatch AccordionBatchSampler Accountant ActivationBoundary AdversaryKnowledge Aggregate
    AllGather AllReduce AllToAll Averaged Batches BatchState BatchTrial BoundaryTraffic Broadcast
    Budget Callback Chain ClientData ClientPrivacy ClientTraining CodedLeastSquares CodedMatmul
    CodedMatrix CodedShuffle CodedShuffleSampler CodeOutlook CodePlanner Collected Collector Column
    CommunicationCost CompressedPipeline CompressorOutlook CompressorPlanner Computed Consensus
    CriticalRegimes Dealer Decoded Delivery DifferentialPrivacy Distillation Distilled
    DistributedNoise DiversityMonitor Domain Edges Estimate Evaluation ExchangeContext
    ExchangeMemory FedMA FedMARun Fused Generated Geometry GossipOptimizer GossipRound
    GradientDiversity Inbox Job LargestBatch Link MalformedMessageError Matching MatchResult
    MatmulSession Mechanism MembershipAudit Message MessageContext MicrobatchPlan Mixed Mixtures
    ModelServer ModelServerView NeighborBroadcast NeuronLayout Objective OneBitAdam OpenedSum
    OutlierTest Pairs ParameterGossip Part Party Peer PrivateData ProcessGroupCollectives Product
    PrototypeRun Received Regime Replies Reply Reputation Round RoundLedger RoundOverError Rounds
    RowCache Run Samples SecureClient SecureSetup Shard SharedTensor Shares ShufflePlan
    ShuffleSession SimulatedPipeline Site Splits Spread Standing SumClient SumRange SumSetup
    Teachers TensorStates TimedProduct Topology TrainingWorkers Transcript UnexpectedMessageError
    Uploader Verdict Waiting WorkerServer WorkerServerView
"""


def test_list_has_a_line_for_every_public_algorithm(phalanx, monkeypatch, subtests):
    for width in ("60", "80"):
        monkeypatch.setattr(console, "width", int(width))
        lines = phalanx("list")[1].splitlines()
        assert max(map(len, lines)) <= int(width)
        for room in ROOMS:
            with subtests.test(room.__name__, width=width):
                short = room.__name__.rpartition(".")[2]
                assert short in lines
                own = phalanx("list", short)[1].splitlines()
                assert set(own) <= set(lines)
                named = [line.split()[0] for line in own[1:]]
                for name in set(room.__all__) - set(HELPERS.split()):
                    found = getattr(room, name)
                    if inspect.isclass(found) and not inspect.isabstract(found):
                        assert named.count(name) == 1


def test_list_tells_all_of_one_algorithm(phalanx):
    code, out, _ = phalanx("list", "krum")
    assert code == 0
    assert out.startswith("phalanx.aggregation.Krum\n")
    assert "Source: Blanchard" in out
    assert re.search(r"num_byzantine = 1 +Byzantine workers", out)


def test_dashes_stand_for_underscores_in_every_option(phalanx, tmp_path):
    words = ["--steps=1", "--num-workers", "5", "--rule", "Krum", "--rule.num-byzantine=1"]
    assert phalanx("train", *words, "--evaluate-every", "1", "--out", "a-b")[0] == 0
    saved = (tmp_path / "a-b/config.yaml").read_text()
    assert "num_workers: 5" in saved
    assert "num_byzantine: 1" in saved


def test_classes_are_found_in_any_case_and_without_the_name_of_their_family(phalanx, tmp_path):
    words = ["--steps=1", "--rule", "krum", "--data=digits", "--order", "perclient"]
    assert phalanx("train", *words, "--order.partitioner", "Dirichlet", "--out", "a")[0] == 0
    saved = (tmp_path / "a/config.yaml").read_text()
    for name in ("Krum", "Digits", "PerClient", "DirichletPartitioner"):
        assert f".{name}\n" in saved
    assert "did you mean Krum?" in phalanx("train", "--rule", "krumm")[2]


def test_help_names_our_classes_and_those_of_torch_by_their_room(phalanx, monkeypatch, subtests):
    monkeypatch.setenv("COLUMNS", "80")
    for command in COMMANDS:
        with subtests.test(command):
            out = phalanx(command, "--help")[1]
            assert len(out.splitlines()) <= 170
            assert max(map(len, out.splitlines())) <= 80
            assert not re.search(
                r"torch\.(nn|ao|jit|fx)\.\w+\.\w+|known subclasses|class_path", out
            )
            for option in ("code", "rule", "attack", "transforms"):
                assert f"--{option}.help" not in out
    out = " ".join(phalanx("train", "--help")[1].split())
    assert "Any class of torch.optim, such as AdamW." in out
    assert re.search(r"One of .*DracoCyclic", out)
    assert out.index("--code CLASS") < out.index("--steps INT")


def test_help_of_reproduce_lists_the_recipes(phalanx):
    from phalanx.reproduce import recipes

    listed = phalanx("reproduce", "--help")[1].partition("recipes:")[2].splitlines()
    assert [line.split()[0] for line in listed if line] == list(recipes())


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_options_and_classes(phalanx, shell):
    pytest.importorskip("shtab", reason="completion is an extra")
    code, out, _ = phalanx("completion", shell)
    assert code == 0
    for word in ("reproduce", "--num_workers", "DracoCyclic", "--rule.num_byzantine"):
        assert word in out


def test_no_text_commands_the_terminal(phalanx, tmp_path):
    """Neither a title, nor what stands in somebody's run folder, nor what an error repeats."""
    bad = "\x1b]0;mine\x07\x1b[2J\x9b31m"
    words = ["--steps", "2", "--num_workers", "3", "--title", f"{bad}title"]
    assert phalanx("train", *words, "--out", "a")[0] == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    (tmp_path / "a/result.json").write_text(json.dumps({**result, "stopped": f"{bad}why"}))
    for line in (["report", "a"], ["report", f"{bad}none"], ["list", f"{bad}x"], ["train", bad]):
        told = phalanx(*line)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", told[1] + told[2]), told


def test_progress_is_told_in_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr("phalanx.terminal._PAUSE_S", 0.0)
    with SafeConsole().status("starting") as status:
        status.update("half is done")
    assert capsys.readouterr() == ("", "half is done\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_can_be_pasted(phalanx, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = phalanx(command, "--help")
    assert code == 0
    example = re.search(r"^Example:\n((?:  .*\n)+)", out, re.M)
    assert example is not None
    words = example[1].replace("\\\n", " ").split()
    assert words[:2] == ["phalanx", command]
    assert max(map(len, example[1].splitlines())) <= 80


def test_demo_answers_in_its_first_sentence(phalanx, tmp_path):
    code, out, err = phalanx("demo", "--steps", 30, "--out", "d")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    exact = (
        "DRACO repetition and DRACO cyclic ended with the weights of the run without Byzantine "
        "workers"
    )
    assert exact in text
    assert "DRACO repetition ends with the same bits with the attack as without." in text
    page = re.sub(r"<[^>]+>", " ", (tmp_path / "d" / "report.html").read_text())
    assert exact in " ".join(page.split())
    assert weights(tmp_path / "d/repetition") == weights(tmp_path / "d/repetition-no-attack")
    rounds = {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in tmp_path.glob("d/*/metrics.jsonl")
    }
    # The reference sees the same partitions: its first loss is that of the coded runs.
    first = {name: entries[0]["loss"] for name, entries in rounds.items()}
    honest = [first[name] for name in ("reference", "repetition-no-attack")]
    assert honest[0] == pytest.approx(honest[1], rel=1e-5)
    liars = [
        [entry["byzantine"] for entry in entries]
        for name, entries in rounds.items()
        if name not in ("reference", "repetition-no-attack", "mean")
    ]
    assert all(found == liars[0] for found in liars)


def test_version_is_said(phalanx):
    assert re.fullmatch(r"phalanx \d+\.\d+\.\d+\n", phalanx("--version")[1])


@pytest.mark.slow
def test_help_waits_for_no_library_that_only_work_needs():
    script = (
        "import sys\n"
        "from phalanx.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'sklearn', 'scipy', 'matplotlib', 'ray', 'datasets', 'torchvision'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_audit_is_a_command(phalanx, tmp_path):
    few = ["--num_clients", 8, "--clients_per_round", 5, "--rounds", 2, "--pretraining", 20]
    few += ["--num_clean", 20, "--radii", "[1.0]", "--seeds", "[0,1]", "--jobs", 1]
    code, out, err = phalanx(
        "audit-backdoor", "--rules+", "Krum", "--rules+", "CoordinateMedian", *few, "--out", "a"
    )
    assert code == 0, err
    assert "A stronger attacker may exist." in " ".join(out.split())
    page = (tmp_path / "a/audit.html").read_text(encoding="utf-8")
    assert "What was not tried" in page
    for wrong, message in (
        (["--seeds", "[0]"], "seeds must be at least 2"),
        (["--edge", "none.npz"], "data must be an NpzFile"),
        (["--noise", "0.1"], "noise must go with rules"),
        (["--target", "7"], "target must differ from true_label"),
    ):
        code, _, err = phalanx("audit-backdoor", *few, *wrong, "--out", "b")
        assert code == 2
        assert message in " ".join(err.split())
