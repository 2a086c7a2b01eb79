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
        (TABLE + "train,1,red\n", {}, "line 9 must have 5 cells, got 3"),
        (TABLE.replace("test,", "dev,"), {}, "test must have as many inputs as labels, and at"),
        (TABLE.replace("Oslo,no", "Oslo,yes"), {}, r"test labels must occur .* got \['no'\]"),
        ("label\n1\n0\n", {"test_fraction": 0.5}, "must have a column besides label"),
        ("", {}, "must be a CSV file: a header and rows, got 0 lines"),
        ("a,label\n", {}, "must be a CSV file: a header and rows, got 1 lines"),
        ('a,label\n1,x\n"2,y\n', {}, "line 3: unexpected end of data"),
        ('a,label\n1,x\n"2"2,y\n', {}, "line 3: ',' expected after"),
        ("a,label\n1,x\n" + "2" * 200_000 + ",y\n", {}, "line 3: field larger than field limit"),
        ("a,b,a,label\n1,2,3,x\n", {}, "must have columns of different names, got a twice"),
        (",a,label\n0,1,x\n1,1,y\n", {}, r"got none for column 1 of 3; ignore=\[''\] leaves"),
        (TABLE.replace("no", "yes"), {}, r"at least 2 classes, got only \['yes'\]"),
        (
            TABLE.replace("20", "1e999"),
            {},
            "column age must hold finite .* '1e999' in line 3 and 1",
        ),
        (TABLE.replace("20", "-inf"), {}, "column age must hold finite .* '-inf' in line 3"),
        (
            TABLE.replace("40", "1e300"),
            {},
            "test inputs must be finite, got NaN or infinity in row",
        ),
        (TABLE, {"max_bytes": 100}, "must hold at most max_bytes=100 bytes, got more"),
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


def test_labels_are_told_apart_by_their_text(tmp_path, subtests):
    for pair in (
        ("9007199254740992", "9007199254740993"),
        ("9" * 30, "9" * 29 + "8"),
        ("007", "7"),
        ("1_2", "12"),
        ("1e2", "100"),
        ("1.0", "1"),
        ("+1", "1"),
        ("٣", "3"),
        ("inf", "infinity"),
    ):
        with subtests.test(pair=pair):
            rows = "".join(f"{i},{pair[i % 2]}\n" for i in range(40))
            splits = CsvFile(write(tmp_path, "a,label\n" + rows)).load()
            assert splits.num_classes == 2
            assert splits.train.tensors[1].bincount().tolist() == [16, 16]


def test_rows_without_a_label_are_refused_by_line(tmp_path, subtests):
    for cell, rule in (
        ("", "have a label in every row"),
        (" ", "have a label in every row"),
        ("nan", "have a label in every row"),
        ("NA", "have a label in every row"),
        ("inf", "hold finite numbers where some are numbers"),
        ("NAN", "hold finite numbers where some are numbers"),
        ("1 ", "hold labels that differ in more than spaces"),
    ):
        with subtests.test(cell=cell):
            rows = "".join(f"{i},{cell if i % 5 == 3 else i % 2}\n" for i in range(20))
            with pytest.raises(
                ValueError, match=rf"column label must {rule}.* in line 5 and 3 more"
            ):
                CsvFile(write(tmp_path, "a,label\n" + rows)).load()


def test_rows_that_are_left_out_need_no_label(tmp_path):
    splits = CsvFile(
        write(tmp_path, TABLE.replace("dev,99,red,Rome,yes", "dev,inf,red,Rome,"))
    ).load()
    assert splits.num_classes == 2


def test_what_stands_for_missing_can_be_said(tmp_path):
    table = "a,label\n" + "1,NA\n-9,DE\n3,NA\n" * 5
    assert CsvFile(write(tmp_path, table), missing=["-9"]).load().num_classes == 2
    inputs = CsvFile(write(tmp_path, table), missing=["-9"]).load().train.tensors[0]
    assert sorted(inputs.unique().tolist())[1] == 0  # the mean of 1 and 3


def test_a_byte_order_mark_and_blank_lines_are_skipped(tmp_path, subtests):
    expected = CsvFile(write(tmp_path, TABLE)).load().train.tensors[0]
    for text in ("\ufeff" + TABLE, TABLE + "\n", "\n\r\n" + TABLE.replace("\n", "\r\n\r\n")):
        with subtests.test(text=text):
            assert CsvFile(write(tmp_path, text)).load().train.tensors[0].equal(expected)


def test_a_column_without_a_name_can_be_left_out(tmp_path):
    path = write(tmp_path, ",a,label\n" + "0,1,x\n1,2,y\n" * 5)
    assert CsvFile(path, ignore=[""]).load().input_shape == (1,)


def test_numbers_of_any_size_are_standardised(tmp_path, subtests):
    for scale in ("e307", "e-300", "e0"):
        with subtests.test(scale):
            rows = "".join(f"{i % 4 - 1}{scale},{i % 2}\n" for i in range(40))
            inputs = CsvFile(write(tmp_path, "a,label\n" + rows)).load().train.tensors[0]
            assert inputs.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_underscores_make_no_number(tmp_path):
    path = write(tmp_path, "a,label\n" + "1_2,x\n12,y\n" * 10)
    assert CsvFile(path).load().input_shape == (2,)  # two categories


def test_other_encodings_are_refused(tmp_path, subtests):
    path = tmp_path / "table.csv"
    for encoding in ("utf-16", "utf-16-le", "latin-1"):
        with subtests.test(encoding):
            path.write_bytes(
                TABLE.replace("Oslo", "Malmö" if encoding == "latin-1" else "Oslo").encode(encoding)
            )
            with pytest.raises(ValueError, match=r"table\.csv must be a CSV file in UTF-8"):
                CsvFile(path).load()


def test_no_more_is_decompressed_than_allowed(tmp_path):
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"a,label\n" + b"0,1\n" * 10**6))
    with pytest.raises(ValueError, match="must hold at most max_bytes=1000 bytes, got more"):
        CsvFile(path, max_bytes=1000).load()
