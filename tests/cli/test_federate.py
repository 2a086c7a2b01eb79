"""The command that runs a federation."""

import json

import pytest


def test_a_federation_writes_a_run_folder_and_a_report_of_its_clients(phalanx, tmp_path):
    words = "--algorithm FedAvg --data digits --partitioner Dirichlet --partitioner.alpha 0.5"
    words += " --num_clients 12 --clients_per_round 5 --rule MultiKrum --attack SignFlip"
    code, out, err = phalanx("federate", *words.split(), "--rounds", 2, "--out", "a")
    assert (code, err) == (0, "")
    assert "suspected" in out
    rounds = [json.loads(one) for one in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    for entry in rounds:
        assert len(set(entry["clients"])) == 5
        assert entry["message_bytes"] > 0
        assert entry["broadcast_bytes"] > 0
    assert 0 <= rounds[-1]["client_accuracy_worst_decile"] <= 1
    assert (tmp_path / "a/partition.json").exists()
    page = (tmp_path / "a/report.html").read_text()
    for title in ("Accuracy over clients", "Traffic", "Who took part", "Partition"):
        assert f"{title}: FedAvg" in page
    assert "Communication-Efficient Learning" in page
    assert "broadcasts per round" in page
    assert "on their own samples the median client is at" in " ".join(out.split())
    assert "1 of 5 clients of a round was Byzantine" in " ".join(out.split())


def test_more_clients_a_round_than_there_are_is_one_line(phalanx, tmp_path):
    code, out, err = phalanx("federate", "--num_clients", 3, "--clients_per_round", 4, "--out", "a")
    assert (code, out) == (2, "")
    assert err == "phalanx: clients_per_round must be at most the 3 clients, got 4\n"
    assert not (tmp_path / "a").exists()


def test_a_secure_sum_by_its_name_and_its_refusals_in_one_line(phalanx, tmp_path):
    pytest.importorskip("cryptography", reason="pip install 'phalanx[secure]'")
    words = "--data digits --num_clients 5 --rounds 2 --aggregation SecureSum"
    words = [*words.split(), "--aggregation.threshold", 4, "--out", "a"]
    noise = ["--aggregation.noise.clip_norm", 0.5, "--aggregation.noise.noise_multiplier", 2]
    assert phalanx("federate", *words, *noise)[0] == 0
    found = json.loads((tmp_path / "a/run.json").read_text())["aggregation"]
    assert (found["threshold"], found["noise"]["clip_norm"]) == (4, 0.5)
    for more, said in (
        (["--rule", "MultiKrum"], "rule must be Mean() under SecureSum"),
        (["--aggregation.threshold", 2], "threshold must be from 3 to 5, got 2"),
    ):
        code, out, err = phalanx("federate", *words[:-1], "b", *more)
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1
