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
    assert "mean time per round" in drawn
    page = (tmp_path / "plans/a/report.html").read_text()
    assert "Take FractionalRepetition, 2 copies" in page
    assert "mean time per round" in page
    assert "<td>exact</td>" in page


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


SOME = ["--compressors+", "HalfPrecision", "--compressors+", "ErrorFeedback"]


def test_plan_recommends_a_compressor_for_a_link(phalanx, tmp_path):
    code, out, err = phalanx(
        "plan", "--link", "1mbit", "--latency", "0.1ms", *SOME, "--out", "plans/a"
    )
    assert (code, err) == (0, "")
    assert "Gradients of 19.2 kB among 4 workers, on links of 1 Mbit/s and 0.100 ms." in out
    assert "Take ErrorFeedback(inner=TopK()): a step" in out
    assert "Latency" not in out
    with (tmp_path / "plans/a/plan.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["compressor"] for row in rows][-1] == "none"
    assert float(rows[0]["step_s"]) < float(rows[-1]["step_s"])
    drawn = (tmp_path / "plans/a/plan.svg").read_text()
    assert drawn.startswith("<svg")
    assert "bandwidth of each worker" in drawn


def test_plan_says_where_nothing_pays_and_who_sends_too_much(phalanx):
    eight = ["--compressors+", "HalfPrecision", "--compressors+", "UniformQuantization"]
    code, out, err = phalanx("plan", "--link", "900tbit", "--num_workers", "9", *eight)
    assert (code, err) == (0, "")
    answer = " ".join(out.split())
    assert "Do not compress: on this link nothing beats the dense all-reduce." in answer
    assert "send more than the dense all-reduce: UniformQuantization()." in answer


def test_plan_says_where_latency_decides(phalanx):
    words = ["--latency", "5s", "--num_workers", "2", "--compressors+", "ErrorFeedback"]
    code, out, err = phalanx("plan", "--link", "100mbit", *words)
    assert (code, err) == (0, "")
    answer = " ".join(out.split())
    # A flag and a gather of equal lengths take as many hops as an all-reduce: 4 of two workers.
    assert "Latency takes 20.00 s of its 20.0" in answer
    assert "no compressor changes that" in answer


def test_plan_is_about_delays_or_about_a_link(phalanx):
    for given, reason in (
        ([], "delays or link must be given, for a code or for a compressor, got neither"),
        (["--link", "1mbit", "--delays", "Bursty"], "got both"),
        (["--link", "1mbit", "--noise", "0"], "noise must go with delays, got the other"),
        (["--delays", "Bursty", "--latency", "1ms"], "latency must go with link, got the other"),
        (["--link", "quick"], "link must be a bandwidth such as 100mbit or 2.5gbit, got 'quick'"),
        (["--link", "1mbit", "--latency", "1"], "latency must be a time span"),
        (["--link", "1mbit", "--num_workers", "1"], "num_workers must be at least 2, got 1"),
        (["--link", "1mbit", "--batch_size", "0"], "batch_size must be at least 1, got 0"),
    ):
        code, _, err = phalanx("plan", *given)
        assert code == 2
        assert reason in " ".join(err.split())
