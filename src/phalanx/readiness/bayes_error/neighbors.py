"""Exact k-nearest-neighbour search, streamed in blocks over queries and references."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from phalanx.checks import require_at_least, require_one_of
from phalanx.data.arrays import Array

Metric = Literal["euclidean", "cosine"]
METRICS = ("euclidean", "cosine")
_BLOCK = 2048  # references of a block
_SAFE = 1e12  # beyond this, squares are left to float64


class NeighborSearch:
    """The k nearest references of every query, of all references that were added so far.

    Neighbours are the first k in the order of (distance, index): ties go to the lowest index. Each
    block is looked through by a matrix product, whose rounding depends on the block; it only
    proposes candidates, by a bound on that rounding, and the distances that decide are summed in
    float64 from differences. So any division into blocks gives the same neighbours and distances,
    to the bit, and duplicates are at distance 0.

    Cost: O(n_queries n_references d) time; O(n_queries (k + d)) memory and blocks of `max_bytes`.

    >>> search = NeighborSearch(np.array([[0.0], [5.0]]))
    >>> search.add(np.array([[1.0], [4.0]]))
    >>> search.add(np.array([[5.5]]))
    >>> search.indices.tolist(), search.distances.tolist()
    ([[0], [2]], [[1.0], [0.25]])
    """

    def __init__(
        self,
        queries: Array,
        k: int = 1,
        metric: Metric = "euclidean",
        *,
        leave_one_out: bool = False,
        max_bytes: int = 2**28,
    ) -> None:
        """Starts a search without references.

        Args:
            queries: `(n, d)`, finite, below 1e150.
            k: neighbours of each.
            metric: what a distance is.
            leave_one_out: whether query i is reference i as well, and no neighbour of itself.
            max_bytes: size of the blocks of distances.

        Raises:
            ValueError: if k or max_bytes is below 1, or the metric unknown.
        """
        require_at_least(1, k=k, max_bytes=max_bytes)
        require_one_of(METRICS, metric=metric)
        self.metric, self.k = metric, k
        self._queries = _points(queries, metric)
        self._loo, self._max_bytes = leave_one_out, max_bytes
        self._center = self._queries.mean(axis=0, dtype=np.float64)
        largest = float(np.abs(self._queries - self._center).max(initial=0.0))
        self._scale = 2.0 ** -int(np.clip(np.frexp(largest)[1], -500, 500)) if largest else 1.0
        self.num_references = 0
        """References added so far."""
        shape = (len(self._queries), k)
        self.indices = np.full(shape, -1, dtype=np.int64)
        """`(n, k)`, nearest first; -1 where there are fewer references than k."""
        self.distances = np.full(shape, np.inf)
        """`(n, k)` float64: squared distances, or 1 - cosine; infinite where there is none."""

    def add(self, references: Array) -> None:
        """Takes more references, `(m, d)`, whose indices go on from those before."""
        references = _points(references, self.metric)
        for start in range(0, len(references), _BLOCK):
            self._block(references[start : start + _BLOCK])

    def _block(self, references: Array) -> None:
        shifted, kind = self._shifted(references, self._queries.dtype)
        norms = np.square(shifted).sum(axis=1)
        rows = max(1, self._max_bytes // (24 * len(references)))
        for start in range(0, len(self._queries), rows):
            self._compare(slice(start, start + rows), references, shifted, norms, kind)
        self.num_references += len(references)

    def _shifted(self, points: Array, dtype: type | np.dtype) -> tuple[Array, np.dtype]:
        """Points about the centre of the queries, where matrix products are most accurate."""
        moved = (points - self._center) * self._scale
        small = np.abs(moved).max(initial=0.0) < _SAFE
        kind = np.dtype(np.float32 if dtype == np.float32 and small else np.float64)
        return moved.astype(kind), kind

    def _compare(
        self, rows: slice, references: Array, shifted: Array, norms: Array, kind: np.dtype
    ) -> None:
        queries = self._queries[rows]
        q = ((queries - self._center) * self._scale).astype(kind)
        q_norms = np.square(q).sum(axis=1)
        near = norms - 2 * (q @ shifted.T) + q_norms[:, None]
        # 2 d + 16 roundings, each of at most half an eps of (|q| + |r|)^2, bounded twice over.
        reach = np.sqrt(q_norms) + np.sqrt(norms.max())
        slack = (2 * q.shape[1] + 16) * np.finfo(kind).eps * np.square(reach.astype(np.float64))
        if self._loo:
            own = np.arange(len(self._queries))[rows] - self.num_references
            inside = np.flatnonzero((own >= 0) & (own < len(norms)))
            near[inside, own[inside]] = np.inf
        worst = self.distances[rows, -1]
        # A later reference replaces the last neighbour only if it is strictly nearer.
        limit = np.where(worst > 0, self._comparable(worst) * (1 + 1e-6) + slack, -np.inf)
        if self.k <= len(norms):
            best = np.partition(near, self.k - 1, axis=1)[:, self.k - 1]
            limit = np.minimum(limit, best + 2 * slack)
        found, columns = np.nonzero(near <= limit[:, None].astype(near.dtype) * (1 + 1e-6))
        columns_of = columns + self.num_references
        if self._loo:
            others = columns_of != found + (rows.start or 0)
            found, columns, columns_of = found[others], columns[others], columns_of[others]
        self._merge(rows, found, columns_of, _exact(queries, references, found, columns))

    def _comparable(self, distances: Array) -> Array:
        """Distances of the caller as squared distances of the scaled points."""
        return distances * (2 if self.metric == "cosine" else 1) * self._scale**2

    def _merge(self, rows: slice, found: Array, indices: Array, distances: Array) -> None:
        if self.metric == "cosine":
            distances = distances / 2
        known = self.indices[rows]
        queries = np.concatenate([np.repeat(np.arange(len(known)), self.k), found])
        indices = np.concatenate([known.ravel(), indices])
        distances = np.concatenate([self.distances[rows].ravel(), distances])
        order = np.lexsort((indices, distances, queries))
        starts = np.searchsorted(queries[order], np.arange(len(known)))
        taken = order[starts[:, None] + np.arange(self.k)]
        self.indices[rows], self.distances[rows] = indices[taken], distances[taken]


def nearest_neighbors(
    queries: Array,
    references: Array | None = None,
    k: int = 1,
    metric: Metric = "euclidean",
    *,
    max_bytes: int = 2**28,
) -> tuple[Array, Array]:
    """The k nearest references of each query, exactly.

    Args:
        queries: `(n, d)`.
        references: `(m, d)`; the other queries if not given.
        k: neighbours of each; ties go to the lowest index.
        metric: Euclidean or cosine; a row of zeros has no direction, and stays zero.
        max_bytes: size of the blocks of distances.

    Returns:
        Squared distances, or 1 - cosine, `(n, k)` float64, and indices, `(n, k)` int64.

    Raises:
        ValueError: if there are fewer references than k, or an argument is out of range.

    >>> nearest_neighbors(np.array([[0.0], [1.0], [1.5]]))[1].ravel().tolist()
    [1, 2, 1]
    """
    available = len(queries) - 1 if references is None else len(references)
    if not 1 <= k <= available:
        raise ValueError(f"k must be from 1 to the number of references {available}, got {k}")
    search = NeighborSearch(
        queries, k, metric, leave_one_out=references is None, max_bytes=max_bytes
    )
    search.add(queries if references is None else references)
    return search.distances, search.indices


def squared_distances(points: Array, max_bytes: int) -> Iterator[tuple[slice, Array]]:
    """Squared distances of blocks of points to all points, float64; 0 where rounding is below 0."""
    moved = np.asarray(points, dtype=np.float64) - points.mean(axis=0, dtype=np.float64)
    norms = np.square(moved).sum(axis=1)
    rows = max(1, max_bytes // (16 * len(moved)))
    for start in range(0, len(moved), rows):
        block = slice(start, start + rows)
        between = norms[block, None] - 2 * (moved[block] @ moved.T) + norms
        yield block, np.maximum(between, 0)


def _points(points: Array, metric: Metric) -> Array:
    """Rows as float32 or float64; of unit length for the cosine."""
    points = np.asarray(points)
    if points.dtype != np.float32:
        points = points.astype(np.float64)
    points = points.reshape(len(points), -1)
    if metric == "euclidean":
        return points
    lengths = np.linalg.norm(points.astype(np.float64), axis=1, keepdims=True)
    unit: Array = points / np.where(lengths > 0, lengths, 1)
    return unit


def _exact(queries: Array, references: Array, rows: Array, columns: Array) -> Array:
    """Squared distances of pairs, summed from differences in float64."""
    distances = np.empty(len(rows))
    step = max(1, 2**21 // max(1, queries.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        apart = queries[rows[part]].astype(np.float64) - references[columns[part]]
        distances[part] = np.square(apart).sum(axis=1)
    return distances
