"""Texts as sequences of tokens."""

import gzip

import pytest
import torch

from phalanx.data import LabelledTexts, TextFile

ROWS = """split,label,title,text
train,1,News,"A fox, a fox and a hen"
train,0,Old,the hen
test,1,News,a dog and a fox
dev,0,Old,dog dog dog
"""


def write(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_bytes(text.encode())
    return path


def test_sequences_follow_each_other_and_ask_for_the_next_character(tmp_path, subtests):
    for name in ("text.txt", "text.txt.gz"):
        with subtests.test(name):
            require_next_characters(tmp_path / name)


def require_next_characters(path):
    text = "ab\r\ncdé" * 9
    splits = TextFile(write(path, text), length=5, test_fraction=0.4).load()
    letters = " " + "".join(sorted(set(text)))  # 0 is none of them
    cut = round(0.6 * len(text))
    for part, own in ((splits.train, text[:cut]), (splits.test, text[cut:])):
        inputs, targets = part.tensors
        whole = (len(own) - 1) // 5 * 5
        assert "".join(letters[token] for token in inputs.flatten()) == own[:whole]
        assert "".join(letters[token] for token in targets.flatten()) == own[1 : whole + 1]


def test_characters_that_training_does_not_have_are_0(tmp_path):
    path = write(tmp_path / "text.txt", "abab" * 5 + "azbA" * 5)
    splits = TextFile(path, length=4, test_fraction=0.5).load()
    assert splits.num_classes == 3
    assert splits.test.tensors[0][0].tolist() == [1, 0, 2, 0]


def test_a_text_that_fills_no_sequence_is_refused(tmp_path):
    path = write(tmp_path / "text.txt", "abcde" * 4)
    with pytest.raises(ValueError, match=r"text\.txt must hold more than 4 .* got 16 and 4"):
        TextFile(path, length=4, test_fraction=0.2).load()


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"text\.txt must be a text in UTF-8"):
        TextFile(tmp_path / "text.txt").load()


def test_frequent_words_of_the_training_rows_are_known(tmp_path):
    """In training: a 3, fox 2, hen 2, then and, the."""
    path = write(tmp_path / "texts.csv", ROWS)
    splits = LabelledTexts(path, length=7, vocabulary=5).load()
    assert splits.train.tensors[0].tolist() == [[2, 3, 2, 3, 1, 2, 4], [1, 4, 0, 0, 0, 0, 0]]
    assert splits.test.tensors[0].tolist() == [[2, 1, 1, 2, 3, 0, 0]]
    assert splits.train.tensors[1].tolist() == [1, 0]
    assert splits.test.tensors[1].tolist() == [1]


def test_hashes_of_words_do_not_depend_on_other_rows(tmp_path):
    whole = LabelledTexts(write(tmp_path / "texts.csv", ROWS), length=4, hashed=True).load()
    shorter = ROWS.replace("the hen", "no")
    other = LabelledTexts(write(tmp_path / "other.csv", shorter), length=4, hashed=True).load()
    assert whole.test.tensors[0].equal(other.test.tensors[0])
    first = whole.train.tensors[0][0]
    assert first[0] == first[2]
    assert len(first.unique()) == 2
    assert 1 <= first.min() <= first.max() < 4096


def test_columns_of_text_are_joined(tmp_path):
    path = write(tmp_path / "texts.csv", ROWS)
    both = LabelledTexts(path, ["title", "text"], length=9).load().train.tensors[0]
    assert ((both > 0).sum(dim=1) == torch.tensor([8, 3])).all()


def test_arguments_are_checked_at_construction(subtests):
    for make, message in (
        (lambda: TextFile(length=0), "length must be at least 1, got 0"),
        (lambda: TextFile(test_fraction=1.0), "test_fraction must be above 0 and below 1, got 1.0"),
        (lambda: TextFile(max_bytes=0), "max_bytes must be at least 1, got 0"),
        (lambda: LabelledTexts(length=0), "length must be at least 1, got 0"),
        (lambda: LabelledTexts(vocabulary=2), "vocabulary must be at least 3, got 2"),
        (lambda: LabelledTexts(text=[]), "text must name at least 1 column, got none"),
    ):
        with subtests.test(message), pytest.raises(ValueError, match=message):
            make()


def test_a_column_that_is_missing_is_named(tmp_path):
    path = write(tmp_path / "texts.csv", ROWS)
    with pytest.raises(ValueError, match="must have columns words, got split, label, title"):
        LabelledTexts(path, ["words"]).load()


def test_a_byte_order_mark_is_no_character(tmp_path):
    path = write(tmp_path / "text.txt", "\ufeff" + "ab" * 20)
    assert TextFile(path, length=4, test_fraction=0.5).load().num_classes == 3


def test_damaged_and_endless_texts_are_refused(tmp_path, subtests):
    packed = gzip.compress(b"ab" * 500, mtime=0)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 8
    for content, rule in (
        (packed[:-3], "must be a text in UTF-8: Compressed file ended"),
        (bytes(flipped), "must be a text in UTF-8"),
        (packed + b"more", "must be a text in UTF-8: Not a gzipped file"),
        (gzip.compress("ab".encode("utf-16-le") * 50), "must be a text in UTF-8: it has NUL at 1"),
        (gzip.compress(b"ab" * 5000), "must hold at most max_bytes=5000 bytes, got more"),
        (b"", "must hold more than 4 characters"),
    ):
        with subtests.test(rule):
            (tmp_path / "text.txt.gz").write_bytes(content)
            with pytest.raises(ValueError, match=rule) as caught:
                TextFile(tmp_path / "text.txt.gz", length=4, max_bytes=5000).load()
            assert "text.txt.gz" in str(caught.value)


def test_texts_without_a_label_are_refused_by_line(tmp_path):
    path = write(tmp_path / "texts.csv", ROWS.replace("train,0", "train,"))
    with pytest.raises(ValueError, match=r"column label must have a label .* got '' in line 3"):
        LabelledTexts(path).load()
