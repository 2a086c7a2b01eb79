"""Feature transformations: scikit-learn transformers, modules of torch, and any callable."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.neighbors import NeighborhoodComponentsAnalysis
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.random_projection import GaussianRandomProjection
from sklearn.utils import get_tags
from torch import nn

from phalanx.data.arrays import Array

Transformation: TypeAlias = nn.Module | Callable[[Array], Any] | Any
"""A scikit-learn transformer, a module, or a function of an array of inputs."""

_FIT_ROWS = 20_000
_FIT_ROWS_WITH_LABELS = 2_000
_BATCH = 256


class Embedding:
    """A transformation, fitted where it can be, that turns rows of raw inputs into features.

    A scikit-learn transformer is cloned and fitted; it gets labels only if its tags require them,
    and images as flat rows. A module gets float32 batches of raw inputs in evaluation mode, a
    callable gets them as they are. Neither is ever shown a label.
    """

    def __init__(self, name: str, transformation: Transformation) -> None:
        """Takes a transformation that is not fitted yet.

        Raises:
            ValueError: if it is none.
        """
        self._is_transformer = hasattr(transformation, "transform")
        if not (self._is_transformer or callable(transformation)):
            raise ValueError(
                f"transformation {name} must be a scikit-learn transformer, a module or callable, "
                f"got {transformation!r}"
            )
        self.name = name
        self.supervised = self._is_transformer and needs_labels(transformation)
        """Whether it is fitted to labels, so that the rows it has seen are no fair references."""
        self.transformation = transformation
        self._fitted: Any = None if self._is_transformer else transformation

    def fit(self, inputs: Array, labels: Array) -> None:
        """Fits the transformer to training rows: to 20,000 at most, 2,000 if it needs labels."""
        if not self._is_transformer:
            return
        most = _FIT_ROWS_WITH_LABELS if self.supervised else _FIT_ROWS
        taken = _flat(inputs[:most])
        fitted = clone(self.transformation)
        self._fitted = fitted.fit(taken, labels[:most]) if self.supervised else fitted.fit(taken)

    def transform(self, inputs: Array) -> Array:
        """Features `(n, d)`, float32 or float64.

        Raises:
            ValueError: if it is not fitted, or gives anything but a finite row for each input.
        """
        if self._fitted is None:
            raise ValueError(f"transformation {self.name} must be fitted before it transforms")
        if isinstance(self._fitted, nn.Module):
            found = _forward(self._fitted, inputs)
        elif self._is_transformer:
            found = self._fitted.transform(_flat(inputs))
        else:
            found = self._fitted(inputs)
        if hasattr(found, "toarray"):  # a sparse matrix
            found = found.toarray()
        if isinstance(found, torch.Tensor):
            found = found.detach().cpu().numpy()
        features = np.asarray(found)
        if features.dtype != np.float32:
            features = features.astype(np.float64)
        if len(features) != len(inputs) or features.ndim < 2:
            raise ValueError(
                f"transformation {self.name} must give a row for each of {len(inputs)} inputs, "
                f"got shape {features.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError(f"transformation {self.name} must give finite features")
        return features.reshape(len(features), -1)


def needs_labels(transformer: Any) -> bool:
    """Whether a transformer, or a step of a pipeline, requires labels by its tags."""
    if isinstance(transformer, Pipeline):
        return any(needs_labels(step) for _, step in transformer.steps if hasattr(step, "fit"))
    return bool(get_tags(transformer).target_tags.required)


def default_transformations(inputs: Array) -> dict[str, Transformation]:
    """Transformations that need no download, for texts or for arrays of numbers.

    Texts: TF-IDF, TF-IDF with 64 singular vectors, hashed words. Numbers: as they are, and
    standardised: all, principal components, a random projection, and neighbourhood components.

    Args:
        inputs: training inputs, `(n, ...)` numbers or `(n,)` texts.
    """
    rows = len(inputs)
    if inputs.dtype.kind in "UO":
        found: dict[str, Transformation] = {
            "tfidf": TfidfVectorizer(max_features=2048, sublinear_tf=True, dtype=np.float32),
            "hashing": HashingVectorizer(n_features=1024, dtype=np.float32),
        }
        vocabulary = TfidfVectorizer().fit(inputs[:_FIT_ROWS_WITH_LABELS]).vocabulary_
        if min(rows // 2, len(vocabulary)) > 64:
            svd = TruncatedSVD(64, random_state=0)
            tfidf = TfidfVectorizer(max_features=20_000, sublinear_tf=True, dtype=np.float32)
            found["tfidf_svd_64"] = make_pipeline(tfidf, svd)
        return found
    dim = int(np.prod(inputs.shape[1:]))
    found = {"raw": FunctionTransformer(), "standardised": StandardScaler()}
    for size in (8, 32, 128):
        if size < min(dim, rows // 2):
            pca = PCA(size, svd_solver="randomized", random_state=0)
            found[f"pca_{size}"] = make_pipeline(StandardScaler(), pca)
    if dim > 64:
        projection = GaussianRandomProjection(32, random_state=0)
        found["random_projection_32"] = make_pipeline(StandardScaler(), projection)
    if 2 < dim <= 1024 and rows >= 200:
        nca = NeighborhoodComponentsAnalysis(min(16, dim), init="pca", max_iter=30, random_state=0)
        found["nca"] = make_pipeline(StandardScaler(), nca)
    return found


def plain_transformations(inputs: Array) -> dict[str, Transformation]:
    """Numbers as they are; TF-IDF and hashed words of texts.

    Args:
        inputs: `(n, ...)` numbers or `(n,)` texts.
    """
    if inputs.dtype.kind in "UO":
        return default_transformations(inputs)
    return {"raw": FunctionTransformer()}


def named_transformations(
    given: Mapping[str, Transformation] | None, inputs: Array
) -> dict[str, Embedding]:
    """Embeddings by name: those given, or the default ones.

    Raises:
        ValueError: if there is none, or one is no transformation.
    """
    taken = default_transformations(inputs) if given is None else given
    if not taken:
        raise ValueError("transformations must be at least 1, got none")
    return {name: Embedding(name, one) for name, one in taken.items()}


def _flat(inputs: Array) -> Array:
    return inputs if inputs.ndim < 3 else inputs.reshape(len(inputs), -1)


def _forward(module: nn.Module, inputs: Array) -> Array:
    """Outputs of a module in evaluation mode, in batches of one size; its mode is put back."""
    modes = {one: one.training for one in module.modules()}
    weight = next(module.parameters(), torch.empty(0))
    module.eval()
    try:
        with torch.no_grad():
            tensor = torch.from_numpy(np.ascontiguousarray(inputs))
            if tensor.is_floating_point():
                tensor = tensor.to(weight.dtype)
            parts = [module(one.to(weight.device)).flatten(1) for one in tensor.split(_BATCH)]
            found: Array = torch.cat(parts).cpu().numpy()
            return found
    finally:
        for one, mode in modes.items():
            one.training = mode
