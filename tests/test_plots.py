import itertools
import math
import os
import re
import time

import histories
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("bokeh")
from greedylr_integrations import history
from greedylr_integrations.decision import Reason
from greedylr_integrations.rules import GreedyConfig
from greedylr_integrations.runs import ACTIONS, RunError, figures, make_run, page, read, terminal, thin
from greedylr_integrations.runs.replay import replay

CHROMIUM = "/usr/bin/chromium"


def long_run(count=100_000, **fields):
    """Losses with noise, spikes and a NaN, decided on by a real controller."""
    rng = np.random.default_rng(0)
    losses = 1 + 3 * np.exp(-np.arange(count) / count * 4) + rng.normal(0, 0.2, count)
    losses[count // 3], losses[count // 2], losses[count // 5] = 50.0, -7.0, np.nan
    run = make_run("long", "CSV log", np.arange(count), losses)
    return replay(run, GreedyConfig(**fields), 1e-3, None, "long")


def test_thinning_keeps_extremes_turns_and_rare_reasons():
    run = long_run(factor=0.999)
    rows = thin.thinned(run, buckets=500)
    assert len(rows) < len(run) / 4
    assert (np.diff(rows) > 0).all()
    assert {0, len(run) - 1, len(run) // 2, len(run) // 3, len(run) // 5} <= set(rows.tolist())
    width = -(-len(run) // 500)
    for values in (run.losses, run.smoothed, run.lrs):
        for start in range(0, len(run), width):
            inside = rows[(rows >= start) & (rows < start + width)]
            assert np.nanmax(values[inside]) == np.nanmax(values[start : start + width])
            assert np.nanmin(values[inside]) == np.nanmin(values[start : start + width])
    moves = [i for i in range(len(run)) if ACTIONS[run.actions[i]] != "hold"]
    turns = [b for a, b in itertools.pairwise(moves) if run.actions[a] != run.actions[b]]
    assert len(turns) > 100
    assert set(turns) <= set(rows.tolist())
    rare = [i for i in range(len(run)) if run.reason(i) in ("FILLING", "NONFINITE")]
    assert set(rare) <= set(rows.tolist())


def test_a_short_run_is_drawn_whole():
    (run,) = read(histories.with_torch().history)
    assert thin.thinned(run).tolist() == list(range(len(run)))


def test_a_picture_names_curves_reasons_and_orders(tmp_path):
    import matplotlib.pyplot as plt

    open_before = plt.get_fignums()  # of other tests' libraries
    (run,) = read(histories.with_torch().history)
    figures.picture(run, tmp_path / "run.svg")
    figures.picture(run, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == open_before
    svg = (tmp_path / "run.svg").read_text()
    wanted = ["smoothed", "recent best", "raised: IMPROVED", "lowered: WORSENED", "cap 2", "NaN or infinite"]
    wanted += [f"{name} {int((run.reasons == code).sum())}" for code, name in enumerate(run.reason_names)]
    for words in wanted:
        assert f"<!-- {words} -->" in svg
    with pytest.raises(RunError, match="No such file or directory"):
        figures.picture(run, tmp_path / "no" / "such" / "run.png")


def test_a_comparison_names_each_run(tmp_path):
    (one,), (two,) = read(histories.with_torch().history), read(histories.with_trainer().history)
    figures.comparison([one, two], tmp_path / "both.svg")
    svg = (tmp_path / "both.svg").read_text()
    assert f"<!-- {one.name}: smoothed -->" in svg
    assert f"<!-- {two.name}: smoothed -->" in svg


def test_text_for_the_terminal():
    pytest.importorskip("plotext")
    (run,) = read(histories.with_torch().history)
    drawn = terminal.text([run], width=90, colour=False)
    assert "smoothed loss" in drawn
    assert "learning rate" in drawn
    assert "\x1b" not in drawn
    assert max(map(len, drawn.splitlines())) <= 90
    assert "\x1b" in terminal.text([run], width=90, colour=True)
    bare = make_run("log", "CSV log", [1, 2, 3], [3.0, 2.0, 1.0])  # no LR
    assert "loss" in terminal.text([bare], width=60, colour=False)


def test_a_page_of_100_000_steps_is_small_even_if_the_lr_turns_all_the_time(tmp_path):
    run = long_run(window_size=1, best_window=4, threshold=0.0)
    assert len(thin.thinned(run)) > 35_000
    page.page([run], ["run"], [["long"]], tmp_path / "a.html")
    assert (tmp_path / "a.html").stat().st_size < 6e6


def test_names_are_escaped(tmp_path):
    (run,) = read(histories.with_torch().history)
    run.name = "<script>alert(1)</script>"
    page.page([run, run], ["run"], [[run.name]], tmp_path / "a.html")
    assert "<script>alert(1)" not in (tmp_path / "a.html").read_text()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not os.path.exists(CHROMIUM):
        pytest.skip("no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=60_000)
        yield opened
        opened.close()


FIGURES = """() => {
    const found = {};
    const visit = view => {
        if (view.model.type === "Figure") {
            const box = view.el.getBoundingClientRect();
            found[view.model.name] = {
                x: box.x, y: box.y, width: box.width, height: box.height,
                start: view.model.x_range.start, end: view.model.x_range.end,
                glyphs: view.model.renderers.length,
            };
        }
        for (const child of view.child_views || []) visit(child);
    };
    for (const view of Bokeh.index.roots) visit(view);
    return found;
}"""
INK = """() => {
    const canvases = [];
    const visit = node => {
        if (node.tagName === "CANVAS") canvases.push(node);
        for (const child of [...(node.shadowRoot ? node.shadowRoot.children : []), ...node.children]) visit(child);
    };
    visit(document.body);
    return canvases.map(canvas => {
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const seen = new Set();
        for (let i = 0; i < pixels.length; i += 4) seen.add((pixels[i] << 16) | (pixels[i + 1] << 8) | pixels[i + 2]);
        return [...seen];
    });
}"""
TOLD = """() => {
    const words = [];
    const visit = node => {
        if (node.nodeType === Node.TEXT_NODE) words.push(node.textContent);
        for (const child of [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes])
            if (child.tagName !== "STYLE") visit(child);
    };
    const find = node => {
        if (node.classList && node.classList.contains("bk-Tooltip")) visit(node);
        else for (const child of [...(node.shadowRoot ? node.shadowRoot.children : []), ...node.children]) find(child);
    };
    find(document.body);
    return words.join(" ");
}"""


def test_the_page_in_a_browser(browser, tmp_path):
    (run,) = read(histories.with_torch().history)
    page.page([run], ["run", "loss"], [["torch", "1"]], tmp_path / "a.html")
    tab = browser.new_page(viewport={"width": 1200, "height": 1100})
    tab.set_default_timeout(30_000)
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))

    def route(route):
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            asked.append(route.request.url)
            route.abort()

    tab.route("**/*", route)
    tab.goto((tmp_path / "a.html").as_uri())
    tab.wait_for_function("() => window.Bokeh && Bokeh.index.roots.length")
    tab.wait_for_timeout(500)

    figures = tab.evaluate(FIGURES)
    assert set(figures) == {"loss", "lr", "reasons"}
    assert figures["loss"]["glyphs"] == 4  # three curves, and the commands
    drawn = {colour for canvas in tab.evaluate(INK) for colour in canvas}
    for colour in (thin.SMOOTH, thin.colour_of("IMPROVED"), thin.colour_of("WORSENED"), thin.LR):
        assert int(colour[1:], 16) in drawn, colour

    lr = figures["lr"]
    tab.mouse.move(lr["x"] + lr["width"] * 0.4, lr["y"] + lr["height"] * 0.5)
    tab.wait_for_function(f"() => ({TOLD})().includes('decision')")
    told = tab.evaluate(TOLD)
    step = int(re.search(r"step\D+(\d+)", told)[1])
    row = run.steps.tolist().index(step)
    assert f"{ACTIONS[run.actions[row]]}: {run.reason(row)}" in told

    tab.mouse.wheel(0, -600)
    tab.wait_for_timeout(300)
    zoomed = tab.evaluate(FIGURES)
    for name in figures:  # all three follow
        before, after = figures[name], zoomed[name]
        assert after["end"] - after["start"] < 0.8 * (before["end"] - before["start"])
    tab.mouse.move(lr["x"] + 200, lr["y"] + 100)
    tab.mouse.down()
    tab.mouse.move(lr["x"] + 400, lr["y"] + 150, steps=4)
    tab.mouse.up()
    tab.wait_for_timeout(300)
    boxed = tab.evaluate(FIGURES)["lr"]
    assert boxed["end"] - boxed["start"] < 0.5 * (zoomed["lr"]["end"] - zoomed["lr"]["start"])
    assert said == []
    assert asked == []
    tab.close()


HOSTILE = '</script><script>window.RAN = 1</script><img src=x onerror="window.RAN = 1">'


def hostile_history(path):
    """A history that fits the format, with markup, a formula and escape codes in all its texts."""
    reasons = ["FILLING", HOSTILE, r"$$\frac{1}{2}$$ \(x\)", "\x1b]0;title\x07\x1b[31mred\u202e"]
    head = {
        "greedylr_history": 2,
        "config": {HOSTILE: HOSTILE, "window_size": HOSTILE},
        "base_lrs": [0.1],
        "total_steps": 60,
        "monitor": r"$$\alpha$$" + HOSTILE,
        "world_size": 1,
        "run": HOSTILE,
        "decisions": 0,
        "commands": 0,
    }
    rows = [
        {
            "step": i,
            "loss": 2 + math.sin(i),
            "smoothed": 2.0,
            "best": 1.9,
            "slope": math.cos(i) / 3,
            "distance": i / 100,
        }
        | {"action": ("hold", "raise", "lower")[i % 3], "reason": reasons[i % 4], "scales": [1.0 + i % 3]}
        | {"lrs": [0.1 + i % 3], "envelope": 1.0, "nonfinite": 0}
        for i in range(60)
    ]
    return histories.write(path, [head, {"step": 0, "order": "cap", "value": 2.0}, *rows])


def opened(browser, path):
    """A tab with the page, what it said, and what it asked the network for."""
    tab, said, asked = browser.new_page(viewport={"width": 1200, "height": 1100}), [], []
    tab.set_default_timeout(30_000)
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    tab.locator(".plot").first.scroll_into_view_if_needed()  # plots are drawn when they are seen
    tab.wait_for_function("() => window.Bokeh && Bokeh.index.roots.length")
    return tab, said, [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


@pytest.mark.parametrize("count", [1, 2, 45])
def test_text_from_files_runs_no_script_and_loads_nothing(browser, tmp_path, count):
    (run,) = read(hostile_history(tmp_path / "h.jsonl"))
    run.name = r"\[x\] $$\beta$$" + HOSTILE
    page.page([run] * count, ["run", HOSTILE], [[run.name, HOSTILE]] * count, tmp_path / "a.html")
    tab, said, asked = opened(browser, tmp_path / "a.html")
    tab.wait_for_timeout(1000)
    figures = tab.evaluate(FIGURES)
    assert {"loss", "lr"} <= set(figures)
    tab.mouse.move(figures["loss"]["x"] + 300, figures["loss"]["y"] + 150)
    tab.wait_for_timeout(500)
    assert tab.evaluate("() => window.RAN === undefined")
    assert tab.evaluate("() => document.images.length + document.querySelectorAll('iframe').length") == 0
    assert (said, asked) == ([], [])
    tab.close()


def test_a_script_that_got_into_the_page_would_not_run(browser, tmp_path):
    """The second lock: the page's own policy."""
    (run,) = read(histories.with_torch().history)
    page.page([run], ["run"], [["x"]], tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text().replace("<h1>", f'<link rel="stylesheet" href="http://x.y/">{HOSTILE}<h1>')
    (tmp_path / "a.html").write_text(text)
    tab, said, _ = opened(browser, tmp_path / "a.html")
    assert tab.evaluate("() => window.RAN === undefined")
    assert len([line for line in said if "Content Security Policy" in line]) >= 3
    tab.close()


def test_hostile_text_in_pictures_and_the_terminal(tmp_path):
    (run,) = read(hostile_history(tmp_path / "h.jsonl"))
    run.name = "_\x1b[31m$\\frac$"
    figures.picture(run, tmp_path / "a.svg")
    figures.comparison([run, run], tmp_path / "b.svg", run.name)
    for drawn in ((tmp_path / "a.svg").read_text(), terminal.text([run, run], 80, False)):
        assert "\x1b" not in drawn
        assert "<script>window" not in drawn


def test_slopes_have_a_panel_with_their_mean(tmp_path):
    """A decision by the slope has its mean where others have the smoothed loss."""
    (run,) = read(hostile_history(tmp_path / "h.jsonl"))
    np.testing.assert_array_equal(run.slope_means, [2.0] * 60)
    assert not run.has("smoothed")
    figures.picture(run, tmp_path / "a.svg")
    assert "<!-- its mean -->" in (tmp_path / "a.svg").read_text()
    page.page([run], ["run"], [["r"]], tmp_path / "a.html")
    assert '"its mean"' in (tmp_path / "a.html").read_text()


def test_every_reason_has_its_own_colour():
    colours = [thin.COLOURS[name] for name in Reason.__members__]
    assert len(set(colours)) == len(colours)


def test_columns_of_a_history_are_drawn_for_a_notebook():
    _, columns, commands = history.read_columns(histories.with_torch().history)
    figure = figures.plot(columns, "mine", commands=commands)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "learning rate", ""]
    import matplotlib.pyplot as plt

    plt.close(figure)


def test_a_page_of_many_runs_takes_a_template_for_each_kind(tmp_path):
    (run,) = read(histories.with_torch().history)
    runs = [run] * 150
    started = time.process_time()
    page.page(runs, ["run"], [["x"]] * 150, tmp_path / "a.html")
    assert time.process_time() - started < 30
    assert (tmp_path / "a.html").stat().st_size < 10e6


def test_the_limit_of_a_spike_is_no_recent_best():
    losses = [*[3.0, 3.1] * 30, 50.0, *[3.0, 3.1] * 5]
    log = make_run("log", "CSV log", np.arange(len(losses)), losses)
    run = replay(log, GreedyConfig(on_spike="hold"), 1e-3, None, "run")
    (spike,) = [row for row in range(len(run)) if run.reason(row) == "SPIKE"]
    assert run.best[spike] > 3.1
    assert np.isnan(run.references[spike])
    others = np.delete(np.arange(len(run)), spike)
    np.testing.assert_array_equal(run.references[others], run.best[others])
