import pytest
import torch

from phalanx.reporting import answer, compare_runs, load_run

W = torch.tensor([1.0, -4.0, 2.0])
LIARS = {"byzantine": (1, 4)}
NAMED = {"byzantine": (1, 4), "suspects": (1, 4)}


def say(*folders, reference=None):
    records = [load_run(folder) for folder in folders]
    return answer(records, compare_runs(records, reference))


def test_one_run_that_named_every_liar(make_run):
    assert say(make_run("a", rounds=60, **NAMED)) == (
        "The run ended after 60 rounds at 96.4 % test accuracy; 2 of 9 workers were Byzantine in"
        " every round"
        " and all were named (precision 1.00, recall 1.00)."
    )


def test_one_run_that_named_nobody(make_run):
    assert say(make_run("a", accuracy=0.1, **LIARS)) == (
        "The run ended after 4 rounds at 10.0 % test accuracy; 2 of 9 workers were Byzantine in"
        " every round"
        " and none was named (recall 0.00)."
    )


def test_one_run_that_named_some_and_an_honest_one(make_run):
    assert say(make_run("a", byzantine=(1, 4), suspects=(1, 5))) == (
        "The run ended after 4 rounds at 96.4 % test accuracy; 2 of 9 workers were Byzantine in"
        " every round"
        " and were named for 4 of 8 Byzantine messages, along with honest ones 4 times"
        " (precision 0.50, recall 0.50)."
    )


def test_suspicion_without_proof_is_not_called_naming(make_run):
    assert say(make_run("a", byzantine=(1, 4), suspects=(1,), outliers=(5,))).endswith(
        "2 of 9 workers were Byzantine in every round and were suspected for 4 of 8 Byzantine"
        " messages, along with honest ones 4 times (precision 0.50, recall 0.50)."
    )
    assert say(make_run("b", outliers=(8,))).endswith(
        "no Byzantine worker was simulated, yet the decoder suspected 1 worker."
    )


def test_one_run_without_attack(make_run):
    assert say(make_run("a")) == (
        "The run ended after 4 rounds at 96.4 % test accuracy;"
        " no Byzantine worker was simulated and nobody was named."
    )


def test_one_run_without_attack_in_which_the_decoder_found_someone(make_run):
    assert say(make_run("a", suspects=(3,))).endswith(
        "no Byzantine worker was simulated, yet the decoder named 1 worker."
    )


def test_one_run_whose_liars_sent_nothing(make_run):
    folder = make_run("a", byzantine=(3,), missing={"3": "silent"})
    assert say(folder).endswith(
        "1 of 9 workers was Byzantine in every round, and none of their messages entered decoding."
    )


def test_liars_that_come_and_go(make_run):
    folder = make_run("a", rounds=2)
    (folder / "metrics.jsonl").write_text(
        '{"step": 0, "byzantine": [1], "suspects": [1]}\n'
        '{"step": 1, "byzantine": [1, 2], "suspects": [1, 2]}\n'
        '{"step": 2, "byzantine": [], "suspects": []}\n'
    )
    assert "up to 2 of 9 workers were Byzantine in 2 of 3 rounds and all were named" in say(folder)


def test_one_unfinished_run(make_run):
    assert say(make_run("a", finished=False, **NAMED)) == (
        "The run is not finished after 4 rounds, last measured at 96.4 % test accuracy;"
        " 2 workers were Byzantine in every round and all were named (precision 1.00, recall 1.00)."
    )


def test_one_run_that_has_not_begun(make_run):
    assert say(make_run("a", rounds=0, finished=False)) == "The run is not finished after 0 rounds."


def test_one_run_stopped_by_an_error(make_run):
    stopped = {"stopped": "3 of 9\nworkers are bad.", "evaluation": {"test_loss": 0.1}}
    folder = make_run("a", rounds=1, accuracy=None, **stopped, **LIARS)
    assert say(folder).startswith(
        "The run was stopped by an error (“3 of 9 workers are bad”) after 1 round, last "
        "measured at test loss 0.1; 2 of 9"
    )


def test_one_run_whose_loss_is_lost(make_run):
    assert "; its last loss is not finite; " in say(make_run("a", loss=None))


def test_several_runs_where_draco_holds_and_the_mean_falls(make_run):
    folders = [
        make_run("honest"),
        make_run("Mean", accuracy=0.1, weights={"w": W + 3}, **LIARS),
        make_run("Krum", accuracy=0.912, weights={"w": W + 1}, **LIARS),
        make_run("DRACO", weights={"w": W + torch.tensor([0.0, 0.0, 2.0**-20])}, **NAMED),
    ]
    assert say(*folders) == (
        "DRACO ended with the weights of the run without Byzantine workers (largest relative"
        " difference 2.4e-7)"
        " and named every Byzantine worker, while Mean fell to 10.0 % and Krum to 91.2 % test"
        " accuracy"
        " (from 96.4 %)."
    )


def test_several_runs_bit_for_bit_with_a_missed_lie(make_run):
    folders = [make_run("honest"), make_run("DRACO", byzantine=(1, 4), suspects=(1,))]
    assert say(*folders) == (
        "DRACO ended with the weights of the run without Byzantine workers (bit for bit) and"
        " named 4 of 8 Byzantine messages."
    )


def test_several_runs_where_none_holds(make_run):
    folders = [
        make_run("honest"),
        make_run("Median", accuracy=0.96, weights={"w": W + 1}, **LIARS),
        make_run("Broken", accuracy=0.1, weights={"w": W / 0.0}, **LIARS),
        make_run("Late", finished=False),
        make_run("Krum", stopped="too many", **LIARS),
    ]
    assert say(*folders) == (
        "No other run ended with the weights of the run without Byzantine workers: Broken fell"
        " to 10.0 %"
        " test accuracy (from 96.4 %) and Median ended at 96.0 % test accuracy with other weights;"
        " Late is not finished after 4 rounds and Krum was stopped by an error after 4 rounds."
    )


def test_many_falls_are_summed_up(make_run):
    falls = [make_run(f"r{i}", accuracy=i / 10, weights={"w": W + 1}, **LIARS) for i in range(1, 6)]
    assert "5 others fell to between 10.0 % and 50.0 % test accuracy" in say(
        make_run("honest"), make_run("DRACO", **NAMED), *falls
    )


def test_several_runs_without_liars(make_run):
    assert say(make_run("a"), make_run("b")) == (
        "No Byzantine worker was simulated: b ended with the weights of the reference run “a”"
        " (bit for bit)."
    )


def test_a_regression_says_its_metric_and_a_callback_that_it_stopped_the_run(make_run):
    found = {"test_loss": 0.25, "test_mae": 0.125, "test_accuracy": None}
    run = make_run("a", accuracy=None, evaluation=found, stopped_by="EarlyStopping: no better")
    assert say(run).startswith(
        "The run was stopped by EarlyStopping: no better and ended after 4 rounds at test mae 0.125"
    )
    only_loss = make_run("b", accuracy=None, evaluation={"test_loss": 0.25})
    assert say(only_loss).startswith("The run ended after 4 rounds at test loss 0.25;")
    assert say(make_run("c", accuracy=None)).startswith(
        "The run ended after 4 rounds and was not evaluated;"
    )
    unfinished = make_run("d", accuracy=None, evaluation=found, finished=False)
    assert "last measured at test mae 0.125" in say(unfinished)


def test_several_runs_without_a_reference(make_run):
    assert say(make_run("a", **LIARS), make_run("b", accuracy=None, **LIARS)) == (
        "There is no run to compare the weights with: a ended at 96.4 % test accuracy"
        " and b ended and was not evaluated."
    )


def test_several_runs_of_which_none_has_finished(make_run):
    assert say(make_run("a", finished=False), make_run("b", stopped="x", rounds=1)) == (
        "None of the 2 runs has finished: a is not finished after 4 rounds"
        " and b was stopped by an error after 1 round."
    )


def test_a_reference_that_is_not_finite_says_nothing_about_others(make_run):
    folders = [make_run("honest", weights={"w": W / 0.0}), make_run("DRACO", **NAMED)]
    assert say(*folders) == (
        "The run without Byzantine workers ended with weights that are not finite:"
        " DRACO ended at 96.4 % test accuracy."
    )


def test_rows_and_runs_must_match(make_run):
    record = load_run(make_run("a"))
    with pytest.raises(ValueError, match="rows must be one per run, got 0 rows for 1 runs"):
        answer([record], [])
    with pytest.raises(ValueError, match="got 0 rows for 0 runs"):
        answer([], [])


def test_who_was_excluded_is_said_with_when(make_run):
    one = say(make_run("a", excluded={3: 2}, **NAMED))
    assert one.endswith("; worker 3 (after 2 rounds) was excluded.")
    doubted = say(make_run("c", excluded={3: 2, 1: 2}, outliers=(3,), **NAMED))
    assert doubted.endswith(
        "workers 1 (after 2 rounds) and 3 (after 2, without proof) were excluded."
    )
    two = say(make_run("b", excluded={7: 3, 3: 1}, **NAMED))
    assert two.endswith("; workers 3 (after 1 round) and 7 (after 3) were excluded.")
