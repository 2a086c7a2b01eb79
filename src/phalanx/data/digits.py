"""Handwritten digits that come with scikit-learn, without a download."""

from dataclasses import dataclass

from phalanx.data.arrays import check_fraction, hold_out, in_memory, standardise
from phalanx.data.base import DataSource, Splits


@dataclass(frozen=True)
class Digits(DataSource):
    """1797 grey images of handwritten digits, 8 x 8 pixels, 10 classes.

    The split is fixed and stratified; pixels are standardised with the training set's mean and
    standard deviation.

    Source: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998 (its test set), as packaged by scikit-learn.

    >>> splits = Digits().load()
    >>> splits.input_shape, splits.num_classes, len(splits.train), len(splits.test)
    ((1, 8, 8), 10, 1438, 359)
    """

    test_fraction: float = 0.2
    """Share of the images that is held out for testing."""

    def __post_init__(self) -> None:
        check_fraction(self.test_fraction)

    def load(self) -> Splits:
        """The images, `(1, 8, 8)` each."""
        # Imported where it is used: it takes as long to import as torch.
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images = images.reshape(-1, 1, 8, 8)
        train, test = hold_out(labels, self.test_fraction, "digits")
        scaled = standardise(images[train], images[test])
        return in_memory((scaled[0], labels[train]), (scaled[1], labels[test]), 10, "digits")
