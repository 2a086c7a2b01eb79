"""Streamed nearest neighbours under one transformation: an arm of a feasibility study."""

import time
from typing import NamedTuple

import numpy as np

from phalanx.data.arrays import Array
from phalanx.readiness.bayes_error.neighbors import Metric, NeighborSearch
from phalanx.readiness.transformations import Embedding


class Pulls(NamedTuple):
    """What the pulls of an arm have found; replaced as a whole."""

    ends: tuple[int, ...] = ()
    """How many of the arm's rows were seen after each pull."""

    sizes: tuple[int, ...] = ()
    """How many of them were there, and not removed."""

    history: tuple[Array, ...] = ()
    """Nearest training row of each test row after each pull, int32; -1 for none."""

    distances: Array = np.empty(0)
    """Distance to the nearest row after the last pull."""


class Arm:
    """Nearest training row of every test row, after each pull of training rows.

    The neighbours after every pull are kept, not their labels: other labels give another curve
    without a distance or an embedding. A pull that is interrupted leaves the arm as it was.
    """

    def __init__(self, embedding: Embedding, rows: Array, fit_rows: Array, chunk: int) -> None:
        """Starts without pulls.

        Args:
            embedding: the transformation.
            rows: training rows in the order in which they are references.
            fit_rows: training rows that the transformation is fitted to.
            chunk: rows of a pull.
        """
        self.embedding, self.rows, self.fit_rows = embedding, rows, fit_rows
        self._chunk = chunk
        self.done = Pulls()
        self._is_fitted = False
        self.dimension = 0
        self.seconds = 0.0
        self.queries: Array | None = None
        """Embedded test rows, while there is memory for them."""

    @property
    def limit(self) -> int:
        """Pulls that there are rows for, those made among them."""
        left = len(self.rows) - (self.done.ends[-1] if self.done.ends else 0)
        return len(self.done.ends) + -(-left // self._chunk)

    def errors(
        self,
        train_labels: Array,
        test_labels: Array,
        rows: Array | slice = slice(None),
        pull: int | None = None,
    ) -> Array:
        """Errors of the nearest neighbour after each pull, or after one of them.

        Args:
            train_labels: `(n,)`.
            test_labels: `(m,)`.
            rows: test rows that count.
            pull: the one that is asked for, counted from 1.
        """
        padded = np.append(train_labels, -1)  # of no neighbour, which is an error
        asked = self.done.history if pull is None else self.done.history[pull - 1 : pull]
        wrong = [padded[one[rows]] != test_labels[rows] for one in asked]
        return np.array([one.mean() for one in wrong])

    def pull(
        self, train: Array, labels: Array, test: Array, alive: Array, metric: Metric, max_bytes: int
    ) -> None:
        """Takes the next rows as references.

        Args:
            train: raw training inputs.
            labels: their labels, for transformations that need them.
            test: raw test inputs.
            alive: which training rows are there.
            metric: what a distance is.
            max_bytes: size of the blocks of distances.
        """
        started = time.perf_counter()
        self.prepare(train, labels, test)
        done = self.done
        start = done.ends[-1] if done.ends else 0
        end = min(start + self._chunk, len(self.rows))
        taken = self.rows[start:end]
        taken = taken[alive[taken]]
        nearest, distances = self._nearest(train, test, taken, metric, max_bytes)
        if done.history:
            # Rows come in a fixed order: the earlier one keeps its place where both are as near.
            kept = done.distances <= distances
            nearest = np.where(kept, done.history[-1], nearest)
            distances = np.where(kept, done.distances, distances)
        size = len(taken) + (done.sizes[-1] if done.sizes else 0)
        self.seconds += time.perf_counter() - started
        self.done = Pulls(
            (*done.ends, end), (*done.sizes, size), (*done.history, nearest), distances
        )

    def prepare(self, train: Array, labels: Array, test: Array) -> None:
        """Fits the transformation and embeds the test rows, unless that was done."""
        if not self._is_fitted:
            self.embedding.fit(train[self.fit_rows], labels[self.fit_rows])
            self._is_fitted = True
        if self.queries is None:
            self.queries = self.embedding.transform(test)
            self.dimension = self.queries.shape[1]

    def forget(
        self,
        removed: Array,
        train: Array,
        labels: Array,
        test: Array,
        alive: Array,
        metric: Metric,
        max_bytes: int,
    ) -> None:
        """Finds anew the neighbours of those test rows that lose one; the others keep theirs.

        Args:
            removed: training rows that are there no more, and not in `alive`.
            train: raw training inputs.
            labels: their labels.
            test: raw test inputs.
            alive: which training rows are there.
            metric: what a distance is.
            max_bytes: size of the blocks of distances.
        """
        done = self.done
        if not done.history:
            return
        hit = np.isin(np.stack(done.history), removed).any(axis=0)
        again = Arm(self.embedding, self.rows, self.fit_rows, self._chunk)
        if hit.any():
            self.prepare(train, labels, test)
            assert self.queries is not None
            again.queries, again.dimension = self.queries[hit], self.dimension
            again._is_fitted = True
        history, distances = [], done.distances.copy()
        for start, end, before in zip([0, *done.ends], done.ends, done.history, strict=False):
            now = before.copy()
            if hit.any():
                again._chunk = end - start
                again.pull(train, labels, test, alive, metric, max_bytes)
                now[hit], distances[hit] = again.done.history[-1], again.done.distances
            history.append(now)
        sizes = tuple(int(alive[self.rows[:end]].sum()) for end in done.ends)
        self.done = Pulls(done.ends, sizes, tuple(history), distances)

    def restart(self) -> None:
        """Gives up what was found: the labels that the transformation is fitted to have changed."""
        self.done, self.queries, self._is_fitted = Pulls(), None, False

    def _nearest(
        self, train: Array, test: Array, rows: Array, metric: Metric, max_bytes: int
    ) -> tuple[Array, Array]:
        assert self.queries is not None
        search = NeighborSearch(self.queries, 1, metric, max_bytes=max_bytes)
        if len(rows):
            features = self.embedding.transform(train[rows])
            if features.shape[1] != self.dimension:
                raise ValueError(
                    f"transformation {self.embedding.name} must give as many features for every "
                    f"input, got {self.dimension} and {features.shape[1]}"
                )
            search.add(features)
        places, distances = search.indices[:, 0], search.distances[:, 0]
        nearest = np.append(rows, -1)[places].astype(np.int32)
        return nearest, distances
