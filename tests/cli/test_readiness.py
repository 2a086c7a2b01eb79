"""`phalanx feasibility` as a user types it."""

import json
import signal
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from phalanx.readiness import Study

IMAGES, DIGITS = load_digits(return_X_y=True)


def write_npz(path, labels=DIGITS):
    np.savez(path, x_train=IMAGES[:800].reshape(-1, 8, 8), y_train=labels[:800])


def test_the_verdict_is_the_exit_code_and_the_report_shows_convergence(phalanx, tmp_path):
    write_npz(tmp_path / "a.npz")
    code, out, err = phalanx("feasibility", "a.npz", "--target", 0.8, "--out", "yes")
    assert (code, err) == (0, "")
    assert out.startswith("REALISTIC: a target accuracy of 80.00% allows")
    noisy = np.where(np.random.default_rng(0).random(len(DIGITS)) < 0.5, DIGITS[::-1], DIGITS)
    write_npz(tmp_path / "b.npz", noisy)
    code, out, _ = phalanx("feasibility", "b.npz", "--target", 0.95, "--out", "no")
    assert code == 3
    assert "UNREALISTIC" in out
    assert "labels, for" in " ".join(out.split())
    told = json.loads((tmp_path / "no" / "feasibility.json").read_text())
    assert (told["verdict"], told["unclear"]) == ("UNREALISTIC", [])
    page = (tmp_path / "no" / "report.html").read_text()
    assert "<svg" in page
    assert "training rows grow without limit" in page
    study = Study.load(tmp_path / "no")
    assert study.answer().bayes_error == told["bayes_error"]


def test_tables_texts_and_folders_of_images_are_data(phalanx, tmp_path, subtests):
    draw = np.random.default_rng(0)
    lines = [
        f"{i % 2},{i % 2 + draw.normal() / 9:.4f},word{i % 2} thing{i % 7}" for i in range(400)
    ]
    (tmp_path / "a.csv").write_text("label,size,words\n" + "\n".join(lines))
    for i in range(240):
        folder = tmp_path / "pictures" / f"class{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 60, (6, 6)) + 90 * (i % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    for words in ("a.csv", "a.csv --text+ words", "pictures"):
        with subtests.test(words):
            code, out, err = phalanx("feasibility", *words.split(), "--out", "a")
            assert (code, err) == (0, "")
            assert "REALISTIC" in out


def test_bad_input_is_told_in_one_line(phalanx, tmp_path, subtests):
    (tmp_path / "a.csv").write_text("label,x\n" + "a,1\n" * 30)
    (tmp_path / "b.csv").write_text("label,x\n" + "a,1\na ,2\n" * 30)
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("x")
    write_npz(tmp_path / "c.npz")
    cases = {
        "missing.csv": "missing.csv: No such file",
        "a.csv": "at least 2 classes",
        "b.csv": "differ in more than spaces",
        "a.csv --label y": "must have columns y",
        "empty": "must hold images, got none",
        "a.txt": "must be a .csv or .npz file or a folder of images",
        "c.npz --target 1.5": "target_accuracy must be from 0 to 1, got 1.5",
        "c.npz --text+ words": "text must go with a .csv file",
        "c.npz --transformations+ nothing.there": "must be an import path",
        "c.npz --metric none": "metric must be one of",
    }
    for words, message in cases.items():
        with subtests.test(words):
            code, _, err = phalanx("feasibility", *words.split(), "--out", "a")
            assert code == 2
            assert message in err
            assert err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_a_transformation_of_ones_own_is_given_by_import_path(phalanx, tmp_path):
    write_npz(tmp_path / "a.npz")
    (tmp_path / "mine.py").write_text("def halves(x):\n    return x.reshape(len(x), -1)[:, :32]\n")
    words = "a.npz --transformations+ mine.halves --strategy all --out a"
    assert phalanx("feasibility", *words.split())[0] == 0
    assert "mine.halves" in (tmp_path / "a" / "report.html").read_text()


def test_no_time_is_an_error(phalanx, tmp_path):
    write_npz(tmp_path / "a.npz")
    code, _, err = phalanx("feasibility", "a.npz", "--budget_s", 1e-9, "--out", "a")
    assert code == 2
    assert "no pull was made" in err


@pytest.mark.slow
def test_ctrl_c_ends_with_the_best_answer_so_far(start, tmp_path):
    write_npz(tmp_path / "a.npz")
    (tmp_path / "slow.py").write_text(
        "import time, pathlib\n\n\ndef embed(x):\n    time.sleep(0.5)\n"
        "    pathlib.Path('begun').touch()\n    return x.reshape(len(x), -1)\n"
    )
    words = "feasibility a.npz --transformations+ slow.embed --strategy all --out a"
    process = start(*words.split())
    deadline = time.monotonic() + 100
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "Not yet clear: the study is not complete (interrupted)" in " ".join(out.split())
    assert (tmp_path / "a" / "report.html").exists()


@pytest.mark.slow
def test_feebee_scores_estimators_and_goes_on_where_it_was_stopped(phalanx, tmp_path):
    write_npz(tmp_path / "a.npz")
    (tmp_path / "constants.py").write_text(
        "def zero(X, y):\n    return 0.0, 0.0\n\n\ndef broken(X, y):\n    return 1 / 0, 0\n"
    )
    given = [
        "NearestNeighborError",
        "NearestNeighborError(k=9)",
        "constants.zero",
        "constants.broken",
    ]
    few = ["--max_rows", 300, "--runs", 1, "--out", "a"]
    words = [word for one in given for word in ("--estimators+", one)]
    code, out, err = phalanx("feebee", "a.npz", 0.01, *words[:4], *few)
    assert (code, err) == (0, "")
    lines = (tmp_path / "a" / "runs.jsonl").read_text()
    (tmp_path / "a" / "runs.jsonl").write_text(lines + '{"torn')
    code, out, err = phalanx("feebee", "a.npz", 0.01, *words, *few)
    assert (code, err) == (0, "")
    assert (tmp_path / "a" / "runs.jsonl").read_text().startswith(lines)
    assert "constants.zero over raw: 1.000, 1.000" in out
    assert "constants.broken over raw: failed" in out
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "ZeroDivisionError" in page
    cases = {
        "NearestNeighborErro": "estimators must be HenzePenrose",
        "NearestNeighborError(q=1)": "Invalid parameter",
        "NearestNeighborError(k=": "estimators must be such as NearestNeighborError(k=3)",
    }
    for name, message in cases.items():
        code, _, err = phalanx("feebee", "a.npz", 0.01, "--estimators+", name, "--out", "b")
        assert code == 2
        assert message in err
    code, _, err = phalanx("feebee", "a.npz", 0.01, *few, "--seed", 1)
    assert code == 2
    assert "one of these data and seed" in err
