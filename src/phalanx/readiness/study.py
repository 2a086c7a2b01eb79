"""Feasibility study: can these data reach a target accuracy? Asked before any training."""

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from phalanx.checks import require_at_least, require_between, require_finite_above, require_one_of
from phalanx.data.arrays import Array
from phalanx.readiness.arm import Arm
from phalanx.readiness.bayes_error.cover_hart import cover_hart
from phalanx.readiness.bayes_error.neighbors import METRICS, Metric
from phalanx.readiness.data_checks import (
    checked_inputs,
    duplicates,
    findings_of_inputs,
    findings_of_labels,
    numbered_classes,
    require_alike,
    require_as_many,
)
from phalanx.readiness.feasibility import Feasibility, Prices, curve, feasibility
from phalanx.readiness.halving import successive_halving
from phalanx.readiness.study_files import read_study, start_arms, write_study
from phalanx.readiness.transformations import Transformation

Strategy = Literal["halving", "all"]
Watch = Callable[[str, int, int], None]


class _Paused(Exception):
    """A pull that may not be made now."""


class Study:
    """Feasibility study whose data may change: labels mended, rows added or removed, a new target.

    Every test row keeps its nearest training row after every pull under every transformation. New
    labels give a new answer from these, without an embedding or a distance; the answer is that of
    a study that starts with these labels, to the bit, once `run` has made the pulls that such a
    study would make. Transformations stay as they were fitted when rows are added or removed.

    A transformation that is fitted to labels (neighbourhood components) sees one half of the
    training rows, and the other half is looked for neighbours. If a label that it has seen is
    mended it starts over at the next `run`, and has no say until then.

    Cost: O(n_test n_train d) time for each transformation; O(n_test) memory for each pull, and
    `max_bytes` for embedded test rows and again for distances.
    Source: Renggli, Rimanic, Kolar, Wu, Zhang, "Automatic Feasibility Study via Data Quality
    Analysis for ML: A Case-Study on Label Noise", 2023.

    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> study = Study(X[:1200], y[:1200], X[1200:], y[1200:], target_accuracy=0.9)
    >>> study.run().verdict
    'REALISTIC'
    """

    def __init__(
        self,
        train_inputs: Any,
        train_labels: Any,
        test_inputs: Any,
        test_labels: Any,
        target_accuracy: float,
        transformations: Mapping[str, Transformation] | None = None,
        *,
        num_classes: int | None = None,
        metric: Metric = "euclidean",
        strategy: Strategy = "halving",
        chunk: int | None = None,
        prices: Prices = Prices(),  # noqa: B008 - frozen
        seed: int = 0,
        max_bytes: int = 2**28,
    ) -> None:
        """Checks the data; nothing is computed before `run`.

        Args:
            train_inputs: `(n, ...)`, finite numbers, or `(n,)` texts.
            train_labels: `(n,)`, whole numbers or texts.
            test_inputs: `(m, ...)`, of the same kind.
            test_labels: `(m,)`.
            target_accuracy: the accuracy that is wanted, in [0, 1].
            transformations: by name; those of `default_transformations` if not given.
            num_classes: classes that there are; those that occur if not given.
            metric: euclidean or cosine.
            strategy: halving looks at all rows under the best transformation only; all under all.
            chunk: training rows of a pull; 2 %, and at least 100, if not given.
            prices: what labels and failures cost.
            seed: of the order in which rows are taken.
            max_bytes: see above.

        Raises:
            ValueError: if data or arguments are not as said.
        """
        require_one_of(METRICS, metric=metric)
        require_one_of(("halving", "all"), strategy=strategy)
        require_at_least(1, chunk=chunk, max_bytes=max_bytes)
        self.train, self.test = (
            checked_inputs(train_inputs, "train_inputs"),
            checked_inputs(test_inputs, "test_inputs"),
        )
        require_alike(self.train, self.test, "train_inputs and test_inputs")
        self.train_labels, self.test_labels, self.classes, self.num_classes = numbered_classes(
            train_labels, test_labels, num_classes
        )
        require_as_many(self.train, self.train_labels, "train")
        require_as_many(self.test, self.test_labels, "test")
        self.target_accuracy = target_accuracy
        self.metric, self.strategy, self.prices, self.seed = metric, strategy, prices, seed
        self.max_bytes = max_bytes
        self.chunk = chunk or max(100, -(-len(self.train) // 50))
        self.alive = np.ones(len(self.train), dtype=bool)
        self.arms = start_arms(self.train, transformations, seed, self.chunk)
        self.num_fitted = len(self.train)
        self.reset()

    def reset(self) -> None:
        """Forgets what follows from the data and the pulls."""
        self._of_inputs: list[str] | None = None
        self._stopped: str | None = None

    def save(self, folder: str | Path) -> Path:
        """Writes all that is known to `study.npz` in a folder, the data among it; whole or not.

        Transformations are not written: `load` is given them again, and fits them as before.

        Raises:
            StorageError: if the disk is full.
        """
        return write_study(self, Path(folder))

    @classmethod
    def load(
        cls, folder: str | Path, transformations: Mapping[str, Transformation] | None = None
    ) -> "Study":
        """The study that was saved in a folder.

        Args:
            folder: where it is.
            transformations: those that it was made with; the default ones if not given.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if the file is damaged, or the transformations are others.
        """
        study: Study = cls.__new__(cls)
        read_study(study, Path(folder), transformations)
        return study

    @property
    def target_accuracy(self) -> float:
        """The accuracy that is wanted; may be set to another one at any time."""
        return self._target

    @target_accuracy.setter
    def target_accuracy(self, target: float) -> None:
        require_between(0, 1, target_accuracy=target)
        self._target = target

    def run(self, budget_s: float | None = None, watch: Watch | None = None) -> Feasibility:
        """Makes the pulls that are due, and answers.

        Ctrl-C ends it as the budget does: with the best answer so far, and what was found is kept
        for the next call. Time is looked at between pulls.

        Args:
            budget_s: seconds that it may take; no limit if not given.
            watch: called after each pull with the transformation, its pulls, and its limit.

        Raises:
            ValueError: if a transformation gives no features, or time is over before any was tried.
            KeyboardInterrupt: if it is interrupted before there is any answer.
        """
        require_finite_above(0, budget_s=budget_s)
        ends = None if budget_s is None else time.monotonic() + budget_s

        def pull(name: str) -> None:
            if ends is not None and time.monotonic() > ends:
                raise _Paused
            arm = self.arms[name]
            self._make_room(arm)
            arm.pull(
                self.train, self.train_labels, self.test, self.alive, self.metric, self.max_bytes
            )
            if watch is not None:
                watch(name, len(arm.done.ends), arm.limit)

        self._stopped = None
        try:
            self._replay(pull, self._errors())
        except _Paused:
            self._stopped = "out of time"
        except KeyboardInterrupt:
            self._stopped = "interrupted"
            if not any(arm.done.ends for arm in self.arms.values()):
                raise
        return self.answer()

    def answer(self) -> Feasibility:
        """The answer from what is known, without an embedding or a distance.

        Raises:
            ValueError: if nothing is known yet.
        """

        def refuse(name: str) -> None:
            raise _Paused

        errors = self._errors()
        stopped = "finished"
        try:
            pulls = self._replay(refuse, errors)
        except _Paused:
            stopped = self._stopped or "waiting for run"
            pulls = {name: len(arm.done.ends) for name, arm in self.arms.items()}
        known = {name: count for name, count in pulls.items() if count}
        if not known:
            raise ValueError("nothing is known yet: no pull was made; call run, with more time")
        findings = self._found()
        curves = []
        for name, count in known.items():
            arm = self.arms[name]
            curves.append(
                curve(
                    name,
                    arm.dimension,
                    arm.done.sizes[:count],
                    tuple(errors[name][:count].tolist()),
                    len(self.test),
                    self.num_classes,
                    len(self.arms),
                    count == arm.limit,
                    arm.seconds,
                )
            )
        return feasibility(
            tuple(curves),
            self.target_accuracy,
            self.num_classes,
            int(self.alive.sum()) + len(self.test),
            findings,
            stopped,
            self.prices,
            self._without_duplicates(known),
        )

    def relabel(
        self, train: Mapping[int, Any] | None = None, test: Mapping[int, Any] | None = None
    ) -> Feasibility:
        """Mends labels, and answers; see `answer`.

        Args:
            train: new labels by training row.
            test: new labels by test row.

        Raises:
            ValueError: if there is no such row or class, and nothing is changed then; or if the
                labels are changed, but `run` has to come first.
        """
        changes = []
        for labels, given, name in (
            (self.train_labels, train, "train"),
            (self.test_labels, test, "test"),
        ):
            rows = np.array(list(given or {}), dtype=np.int64)
            if len(rows) and (rows.min() < 0 or rows.max() >= len(labels)):
                raise ValueError(f"{name} rows must be from 0 to {len(labels) - 1}, got {rows}")
            new = np.array([self._number(one) for one in (given or {}).values()], dtype=np.int64)
            changes.append((labels, rows, new))
        changed = changes[0][1][self.train_labels[changes[0][1]] != changes[0][2]]
        for labels, rows, new in changes:
            labels[rows] = new
        for arm in self.arms.values():
            if arm.embedding.supervised and np.isin(changed, arm.fit_rows).any():
                arm.restart()
        return self.answer()

    def add(self, inputs: Any, labels: Any) -> None:
        """Adds training rows, whose numbers go on from those before; `run` looks at them.

        Raises:
            ValueError: if they are of another kind or shape, or of a new class.
        """
        more = checked_inputs(inputs, "inputs")
        require_alike(self.train, more, "training inputs and those to be added")
        numbers = np.array([self._number(one) for one in np.asarray(labels)], dtype=np.int64)
        require_as_many(more, numbers, "added")
        rows = len(self.train) + np.arange(len(more))
        self.train = np.concatenate([self.train, more])
        self.train_labels = np.concatenate([self.train_labels, numbers])
        self.alive = np.concatenate([self.alive, np.ones(len(more), dtype=bool)])
        for arm in self.arms.values():
            arm.rows = np.concatenate([arm.rows, rows])
        self._of_inputs = None

    def remove(self, rows: Any) -> None:
        """Removes training rows by number; neighbours that were among them are looked for anew.

        Raises:
            ValueError: if there is no such row, or none would be left.
        """
        removed = np.unique(np.asarray(rows, dtype=np.int64))
        if len(removed) == 0:
            return
        if removed[0] < 0 or removed[-1] >= len(self.alive) or not self.alive[removed].all():
            raise ValueError(f"rows must be training rows that are there, got {removed}")
        alive = self.alive.copy()
        alive[removed] = False
        if not alive.any():
            raise ValueError("rows must leave a training row, got all of them")
        arms = {name: copy.copy(arm) for name, arm in self.arms.items()}
        for arm in arms.values():
            arm.forget(
                removed,
                self.train,
                self.train_labels,
                self.test,
                alive,
                self.metric,
                self.max_bytes,
            )
        self.alive, self.arms, self._of_inputs = alive, arms, None

    def _errors(self) -> dict[str, Array]:
        """Errors after each pull that was made, by arm."""
        labels = self.train_labels, self.test_labels
        return {name: arm.errors(*labels) for name, arm in self.arms.items()}

    def _replay(self, pull: Callable[[str], None], found: dict[str, Array]) -> dict[str, int]:
        """Pulls that the strategy gives to each arm; those that are not made yet are made."""

        def error(name: str, pulls: int) -> float:
            while len(found[name]) < pulls:
                pull(name)
                found[name] = self.arms[name].errors(self.train_labels, self.test_labels)
            return float(found[name][pulls - 1])

        limits = {name: arm.limit for name, arm in self.arms.items()}
        if self.strategy == "halving":
            return successive_halving(limits, error)
        for name, limit in limits.items():
            error(name, limit)
        return limits

    def _make_room(self, arm: Arm) -> None:
        """Gives up embedded test rows of other arms, as far as there is no memory for them."""
        held = sum(one.queries.nbytes for one in self.arms.values() if one.queries is not None)
        for one in self.arms.values():
            if held > self.max_bytes and one is not arm and one.queries is not None:
                held -= one.queries.nbytes
                one.queries = None

    def _number(self, label: Any) -> int:
        label = label.item() if isinstance(label, np.generic) else label
        if label not in self.classes:
            raise ValueError(f"labels must be one of {self.classes}, got {label!r}")
        return self.classes.index(label)

    def _found(self) -> tuple[str, ...]:
        if self._of_inputs is None:
            train = self.train[self.alive]
            self._both = duplicates(train, self.test)
            self._of_inputs = findings_of_inputs(train, self.test, self._both)
        labels = self.train_labels[self.alive]
        return (*findings_of_labels(labels, self.test_labels, self.num_classes), *self._of_inputs)

    def _without_duplicates(self, pulls: Mapping[str, int]) -> float | None:
        """The estimate on test rows that are no training rows; None if all or none are."""
        rows = ~self._both
        if rows.all() or not rows.any():
            return None
        found = [
            self.arms[name].errors(self.train_labels, self.test_labels, rows, count)[-1]
            for name, count in pulls.items()
        ]
        return float(cover_hart(min(found), self.num_classes))
