"""Handwritten digits of scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from phalanx.data import Digits


def test_every_image_is_in_one_part_and_classes_keep_their_share():
    splits = Digits().load()
    assert len(splits.train) + len(splits.test) == 1797
    share = splits.test.tensors[1].bincount() / (
        splits.train.tensors[1].bincount() + splits.test.tensors[1].bincount()
    )
    assert share.min() > 0.19
    assert share.max() < 0.21


def test_images_belong_to_their_labels():
    splits = Digits().load()
    (x_train, y_train), (x_test, y_test) = (
        (part.tensors[0].flatten(1).numpy(), part.tensors[1].numpy())
        for part in (splits.train, splits.test)
    )
    model = LogisticRegression(max_iter=500).fit(x_train, y_train)
    assert np.mean(model.predict(x_test) == y_test) > 0.93


def test_another_share():
    assert len(Digits(test_fraction=0.5).load().test) == 898
    with pytest.raises(ValueError, match=r"test_fraction must be above 0 and below 1, got 0\.0"):
        Digits(test_fraction=0.0)
    with pytest.raises(ValueError, match="test_fraction must leave rows on both sides"):
        Digits(test_fraction=0.0001).load()
