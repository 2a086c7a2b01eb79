"""`phalanx plan`: from delays to a recommendation."""

import csv

FEW = ["--num_workers", "8", "--max_redundancy", "2", "--num_rounds", "30"]


def test_plan_recommends_and_writes_what_it_compared(phalanx, tmp_path):
    (tmp_path / "trace.csv").write_text("1,1,1,1,1,1,1,9\n1,9,1,1,1,1,1,1\n1,1,1,9,1,1,1,1\n")
    code, out, err = phalanx("plan", "--delays", "trace.csv", *FEW, "--out", "plans/a")
    assert (code, err) == (0, "")
    assert "Take FractionalRepetition, 2 copies, and wait until it is exact: 9 times" in out
    with (tmp_path / "plans/a/plan.csv").open() as file:
        first, *_ = csv.DictReader(file)
    assert (first["code"], first["round_s"]) == ("FractionalRepetition", "1.0")
    drawn = (tmp_path / "plans/a/plan.svg").read_text()
    assert drawn.startswith("<svg")
    assert "mean time of a round" in drawn


def test_plan_takes_delay_models_by_name(phalanx):
    code, out, err = phalanx("plan", "--delays", "Bimodal", "--delays.slow_s", "20", *FEW)
    assert (code, err) == (0, "")
    assert "Take " in out


def test_plan_wants_a_file_or_a_model(phalanx):
    code, _, err = phalanx("plan", "--delays", "nothing.csv", *FEW)
    assert code == 2
    assert "delays must be a file or the name of a model, got nothing.csv" in err


def test_the_options_of_the_local_engine_have_names(phalanx, tmp_path):
    engine = ["--engine", "Local", "--engine.delays", "ShiftedExponential"]
    engine += ["--engine.delays.mean_s", "0.5", "--engine.policy", "WaitFor"]
    engine += ["--engine.policy.num_messages", "13"]
    code, _, err = phalanx(
        "train", "--code", "FractionalRepetition", *engine, "--steps", "2", "--out", "runs/a"
    )
    assert (code, err) == (0, "")
    assert (tmp_path / "runs/a/metrics.jsonl").read_text().count('"late"') >= 4
