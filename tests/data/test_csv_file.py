"""CSV tables: numbers, categories, bags of words."""

import gzip

import pytest
import torch

from phalanx.data import CsvFile

TABLE = """split,age,colour,city,label
train,10,red,Rome,yes
train,20,blue,Oslo,no
train,30,red,Rome,yes
train,,blue,Oslo,no
test,20,green,Rome,no
dev,99,red,Rome,yes
test,40,red,Oslo,yes
"""


def write(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    if name.endswith(".gz"):
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(text)
    else:
        path.write_text(text, encoding="utf-8")
    return path


def test_numbers_are_standardised_and_categories_one_hot(tmp_path, subtests):
    u = 1.5**0.5  # 10, 20, 30 have mean 20 and variance 200 / 3; columns sort: blue red Oslo Rome
    train = torch.tensor([[-u, 0, 1, 0, 1], [0, 1, 0, 1, 0], [u, 0, 1, 0, 1], [0, 1, 0, 1, 0]])
    test = torch.tensor([[0, 0, 0, 0, 1], [2 * u, 0, 1, 1, 0]])
    for name in ("table.csv", "table.csv.gz"):
        with subtests.test(name):
            splits = CsvFile(write(tmp_path, TABLE, name)).load()
            torch.testing.assert_close(splits.train.tensors[0], train)
            torch.testing.assert_close(splits.test.tensors[0], test)
            assert splits.train.tensors[1].tolist() == [1, 0, 1, 0]
            assert splits.test.tensors[1].tolist() == [0, 1]


def test_columns_can_be_left_out_or_taken_as_categories(tmp_path):
    path = write(tmp_path, TABLE)
    assert CsvFile(path, ignore=["city", "colour"]).load().input_shape == (1,)
    assert CsvFile(path, ignore=["city", "colour"], categorical=["age"]).load().input_shape == (4,)


def test_text_becomes_a_bag_of_words_of_norm_1(tmp_path):
    path = write(
        tmp_path, "label,text\n" + '1,"Good, good film"\n0,bad film\n1,film good GOOD\n0,\n' * 3
    )
    splits = CsvFile(path, text=["text"], num_features=64).load()
    everything = torch.cat([splits.train.tensors[0], splits.test.tensors[0]])
    labels = torch.cat([splits.train.tensors[1], splits.test.tensors[1]])
    assert splits.input_shape == (64,)
    assert {round(norm.item(), 5) for norm in everything.norm(dim=1)} == {0.0, 1.0}
    assert len(everything[labels == 1].unique(dim=0)) == 1  # neither case nor order matter
    assert len(everything[labels == 0].unique(dim=0)) == 2


def test_what_hardly_repeats_is_text_and_what_has_too_many_values_is_hashed(tmp_path):
    lines = [f"{i % 2},{i},word{i} and" for i in range(40)]
    path = write(tmp_path, "label,id,note\n" + "\n".join(lines) + "\n")
    assert CsvFile(path, num_features=32).load().input_shape == (33,)  # a number and a bag
    hashed = CsvFile(path, num_features=32, categorical=["id"], max_categories=10, ignore=["note"])
    inputs = hashed.load().train.tensors[0]
    assert inputs.shape == (32, 32)
    assert (inputs != 0).sum(dim=1).tolist() == [1] * 32


def test_the_name_of_the_column_is_part_of_the_word(tmp_path):
    path = write(tmp_path, "label,a,b\n" + "0,x,y\n1,y,x\n" * 4)
    splits = CsvFile(path, text=["a", "b"], num_features=4096).load()
    assert len(splits.train.tensors[0].unique(dim=0)) == 2


def test_labels_that_are_numbers_sort_as_numbers(tmp_path):
    path = write(tmp_path, "x,label\n" + "1,10\n2,9\n3,2\n" * 5)
    splits = CsvFile(path).load()
    inputs, targets = splits.train.tensors
    assert [targets[inputs.flatten().argmin()], targets[inputs.flatten().argmax()]] == [2, 0]


def test_errors_name_file_and_rule(tmp_path, subtests):
    for text, options, message in (
        (TABLE, {"label": "income"}, "must have columns income, got split, age"),
        (TABLE, {"split": "part", "text": ["words"]}, "must have columns words, part, got"),
        (TABLE + "train,1,red\n", {}, "row 9 must have 5 cells, got 3"),
        (TABLE.replace("test,", "dev,"), {}, "test must have as many inputs as labels, and at"),
        (TABLE.replace("Oslo,no", "Oslo,yes"), {}, r"test labels must occur .* got \['no'\]"),
        ("label\n1\n0\n", {"test_fraction": 0.5}, "must have a column besides label"),
        ("", {}, "must be a CSV file in UTF-8"),
    ):
        with subtests.test(message):
            path = write(tmp_path, text)
            with pytest.raises(ValueError, match=message) as caught:
                CsvFile(path, **options).load()
            assert "table.csv" in str(caught.value)


def test_broken_compression_is_named(tmp_path, subtests):
    path = tmp_path / "broken.csv.gz"
    for content in (b"not gzip", b"", gzip.compress(b"x,label\n1,2\n", mtime=0)[:-9]):
        with subtests.test(content=content):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"broken\.csv\.gz must be a CSV file"):
                CsvFile(path).load()


def test_arguments_are_checked_at_construction():
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        CsvFile(num_features=0)
    with pytest.raises(ValueError, match="max_categories must be at least 1, got 0"):
        CsvFile(max_categories=0)
