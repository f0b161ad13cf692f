"""The report of a real run in a real browser: it says what the run found, works offline, and shows markup as text."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from conftest import as_written
from plotly.offline import get_plotlyjs

from cca import cli
from cca.evaluation.pivot_kinds import PIVOT_KINDS
from cca.folder import RunFolder
from cca.records import Pivot, Problem, Score, Trial
from cca.run import compare
from cca.run.run import Run
from cca.show import figures, words
from cca.show.circuit import CircuitView
from cca.show.report.page import shown_pivots, write_report
from cca.show.views import Effect, Step, pivot_views

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium found, so the tests of the report in a browser are LEFT OUT: apt-get install chromium",
)
SIZES = [(390, 844), (1600, 1000)]
MARKUP = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'><b>bold</b>{{7*7}}"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a report; at the end no page may have asked for anything, or complained."""
    complaints: list[str] = []
    contexts = []

    def opened(path: Path, size=(1600, 1000), **settings):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        page.wait_for_selector(".chart .main-svg")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [c for c in complaints if c != "data:,"] == []


@pytest.fixture(scope="module")
def report(mended) -> Path:
    return mended / "report.html"


def test_the_headline_is_that_of_the_summary(report, visit):
    summary = json.loads(report.with_name("summary.json").read_text())
    page, target = visit(report), summary["target"]
    shown = {name: page.inner_text(f"#{name}") for name in ("base", "updated", "difference", "interval", "rows")}
    assert shown == {
        "base": f"{100 * target['base']:.1f}%",
        "updated": f"{100 * target['updated']:.1f}%",
        "difference": words.points(target["difference"]),
        "interval": " to ".join(map(words.points, target["ci95"])),
        "rows": f"{summary['update']['rows']:,}",
    }
    assert page.inner_text("#selected") == str(summary["circuit"]["selected"])
    assert page.inner_text("#density") == f"{summary['circuit']['density']:.2%}"
    assert page.inner_text("#verdict") == words.verdict(Run.load(report.parent).summary)
    assert "model organism" in page.inner_text(".notice")
    rows = page.locator("#results tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == [row.name for row in words.set_rows(Run.load(report.parent).summary)]
    assert page.inner_text("#config").rstrip() == report.with_name("config.toml").read_text().rstrip()


def test_the_page_is_one_file_of_under_eight_megabytes(report):
    assert report.stat().st_size < 8_000_000
    page = report.read_text()
    assert 'src="http' not in page.replace("https://", "http")[: page.index("<script>")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_scrolls_sideways_and_every_figure_is_drawn(report, visit, size, scheme):
    page = visit(report, size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    charts = page.locator(".chart")
    assert charts.count() == 8
    for i in range(charts.count()):
        box = charts.nth(i).locator(".main-svg").first.bounding_box()
        assert box["width"] > 200
        assert box["x"] + box["width"] <= size[0]
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper


def test_a_table_with_all_its_columns_and_long_names_fits_a_small_desktop(mended, visit, tmp_path):
    folder = shutil.copytree(mended, tmp_path / "full")
    summary = json.loads((folder / "summary.json").read_text())
    summary["retention"]["a_skill_with_a_rather_long_name"] = summary["retention"].pop("leg_counting")
    summary["target"] |= {kind: {"base": 0.125, "updated": 0.25} for kind in ("no_answer", "cut")}
    (folder / "summary.json").write_text(json.dumps(summary))
    as_written(folder)
    write_report(folder / "report.html", RunFolder.open(folder), Run.load(folder).prompter)
    page = visit(folder / "report.html", (1024, 768))
    assert page.locator("#results thead th").all_inner_texts()[-2:] == ["no answer", "cut"]
    hidden = "[...document.querySelectorAll('.scroll')].map(each => each.scrollWidth - each.clientWidth)"
    assert max(page.evaluate(hidden)) == 0


def test_a_table_of_all_kinds_of_pivots_fits_a_phone(mended, visit, tmp_path):
    folder = shutil.copytree(mended, tmp_path / "kinds")
    summary = json.loads((folder / "summary.json").read_text())
    summary["pivots"]["by_kind"] = {kind: {"n": 1200, "preferred": 300, "mended": 200} for kind in PIVOT_KINDS}
    (folder / "summary.json").write_text(json.dumps(summary))
    as_written(folder)
    write_report(folder / "report.html", RunFolder.open(folder), Run.load(folder).prompter)
    page = visit(folder / "report.html", (390, 844))
    assert page.locator("#kinds tbody tr").count() == len(PIVOT_KINDS)
    assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('#kinds').parentElement)") == 0


def test_search_and_filters_leave_the_pivots_that_fit(report, visit):
    page = visit(report)
    folder = RunFolder.open(report.parent)
    pivots = [p for p in folder.read("pivots.jsonl", Pivot) if p.method == "branching"]
    everything = page.locator("#list li").count()
    assert everything == len(pivots)
    page.fill("#search", pivots[0].problem)
    assert pivots[0].problem in page.inner_text("#pivot h3")
    assert page.locator("#list li").count() < everything
    page.fill("#search", "no trace says this")
    assert page.inner_text("#pivot") == "No pivot fits."
    page.press("#search", "Escape")
    assert page.locator("#list li").count() == everything
    page.select_option("#template", pivots[-1].template)
    assert page.locator("#list li").count() == sum(p.template == pivots[-1].template for p in pivots)
    page.select_option("#template", "")
    outcome = page.locator("#outcome option").nth(1).get_attribute("value")
    kinds = page.locator("#kinds tbody tr").all_inner_texts()
    assert len(kinds) > 1
    for kind, count, *_ in (row.split("\t") for row in kinds):
        page.select_option("#kind", kind)
        assert page.inner_text("#count") == f"{count} of {everything}"
        assert f"kind: {kind};" in page.inner_text("#pivot")
    page.press("#search", "Escape")
    assert page.locator("#list li").count() == everything
    page.select_option("#outcome", outcome)
    assert page.inner_text("#pivot h3").endswith(outcome)
    assert page.inner_text("#count") == f"{page.locator('#list li').count()} of {everything}"


def test_the_keyboard_alone_reaches_every_pivot(report, visit):
    page = visit(report)

    def selected() -> str:
        assert page.locator("#list [aria-selected]").count() == 1
        return page.locator("#list [aria-selected]").get_attribute("id")

    first = selected()
    page.keyboard.press("j")
    second = selected()
    assert second != first
    page.keyboard.press("k")
    assert selected() == first
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("j")
    assert page.input_value("#search") == "j", "letters are typed while searching"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"
    page.keyboard.press("End")
    assert selected() == page.locator("#list li").last.get_attribute("id")
    bottoms = (
        "[...document.querySelectorAll('#list, #list [aria-selected]')].map(e => e.getBoundingClientRect().bottom)"
    )
    around, item = page.evaluate(bottoms)
    assert item <= around, "the list scrolls to the pivot that is selected"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert selected() == second


def test_a_pivot_shows_both_tokens_their_probabilities_and_answers(report, visit):
    page = visit(report)
    run = Run.load(report.parent)
    view = pivot_views(run.folder, run.prompter)[0]
    page.fill("#search", f"{view.problem} {view.question}")
    text = page.inner_text("#pivot")
    for side in (view.desired, view.undesired):
        assert side.text.strip() in text
        assert f"answer {side.answer}: {'right' if side.correct else 'wrong'}" in text
        assert side.base is not None
        assert words.percent(side.base) in text
    assert page.locator("#pivot mark").all_inner_texts() == [
        s.token.replace(" ", "␣").replace("\n", "⏎") for s in (view.desired, view.undesired)
    ]


def test_markup_from_model_and_data_is_shown_as_text(mended, visit, tmp_path):
    folder = tmp_path / "hostile"
    shutil.copytree(mended, folder)
    run, prompter = RunFolder.open(folder), Run.load(folder).prompter
    ids = tuple(prompter.tokenizer.encode(MARKUP, add_special_tokens=False))
    pivots = run.read("pivots.jsonl", Pivot)
    hostile = [
        Pivot(**{**vars(p), "template": MARKUP, "after_desired": (p.desired, *ids), "prefix": (*p.prefix, *ids)})
        for p in pivots
    ]
    run.write("pivots.jsonl", [Pivot(**{**vars(p), "position": p.position + len(ids)}) for p in hostile])
    problems = run.read("problems.jsonl", Problem)
    run.write("problems.jsonl", [Problem(**{**vars(p), "question": MARKUP, "template": MARKUP}) for p in problems])
    scores = run.read("scores.jsonl", Score)
    run.write("scores.jsonl", [Score(**{**vars(s), "template": MARKUP}) for s in scores])
    summary = json.loads((folder / "summary.json").read_text())
    summary["model"]["path"] = MARKUP
    summary["retention"][MARKUP] = summary["retention"].pop("leg_counting")
    summary["diagnosis"][0]["message"] = MARKUP
    (folder / "summary.json").write_text(json.dumps(summary))
    as_written(folder)
    write_report(folder / "report.html", run, prompter)
    page = visit(folder / "report.html")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, b:text-is('bold')").count() == 0
    shown = page.inner_text("#pivot")
    assert shown.count(MARKUP.replace("{{7*7}}", "")) >= 3, "in question, trace and continuation"
    assert "{{7*7}}" in shown
    assert MARKUP in page.inner_text("header")
    assert MARKUP in page.inner_text("#diagnosis")
    assert MARKUP in page.locator("#template").inner_text()
    assert f"{MARKUP[:13]}…{MARKUP[-14:]}" in page.inner_text(".chart[data-chart='forest']")


def test_a_script_that_got_into_the_page_all_the_same_would_not_run(report, browser, tmp_path):
    tampered = tmp_path / "report.html"
    extra = "<script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"
    tampered.write_text(report.read_text().replace("<main>", f"<main>{extra}"))
    page = browser.new_page()
    page.goto(tampered.as_uri())
    page.wait_for_selector(".chart .main-svg")
    assert page.locator("main > img").count() == 1
    assert page.evaluate("window.hacked") is None
    page.close()


def test_the_report_prints_on_paper_in_light_colours_without_its_controls(report, visit):
    page = visit(report, color_scheme="dark")
    page.emulate_media(media="print")
    page.wait_for_selector("html[data-theme=light]")
    assert not page.is_visible("#filters")
    assert not page.is_visible("nav")
    assert page.is_visible("#pivot")
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_report_of_a_comparison_has_its_table_of_methods(mended, visit, tmp_path):
    out = tmp_path / "out"
    for method in ("branching", "bias"):
        shutil.copytree(mended, out / "1" / method)
    chosen = compare.plan(mended / "config.toml", (), ["branching", "bias"], [1], {})
    found, run = compare.compare(out, chosen), Run.load(mended)
    write_report(tmp_path / "report.html", run.folder, run.prompter, found)
    page = visit(tmp_path / "report.html")
    rows = page.locator("#methods tbody tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == found.ranked
    assert "constant bias on the output logits" in page.inner_text("#methods")
    assert page.locator(".chart").count() == 9
    assert page.evaluate("document.documentElement.scrollWidth") <= 1600


def test_more_pivots_than_the_page_has_room_for_are_thinned_evenly_and_said_to_be(mended, tmp_path, monkeypatch, visit):
    folder, prompter = RunFolder.open(mended), Run.load(mended).prompter
    views = pivot_views(folder, prompter)
    whole = shown_pivots(views)
    assert len(whole) == len(views)
    monkeypatch.setattr("cca.show.report.page.PIVOT_BYTES", sum(len(json.dumps(row)) for row in whole) // 2)
    write_report(tmp_path / "report.html", folder, prompter)
    page = visit(tmp_path / "report.html")
    shown = page.locator("#list li").count()
    assert 1 < shown < len(views)
    assert f"{shown} of {len(views)} are here, evenly spaced" in page.inner_text("#pivots")


LONG = "questions/of a file whose path is as long as eighty characters/{}.jsonl"


@pytest.fixture(scope="module")
def drawn(browser):
    """Draws a figure as the page does, and gives what the browser made of it: a function of JavaScript to look at."""
    page = browser.new_page(viewport={"width": 700, "height": 700})
    page.set_content("<div id=c style='width:700px'></div>")
    page.add_script_tag(content=get_plotlyjs())

    def look(figure: go.Figure, script: str):
        page.evaluate(
            "f => { Plotly.purge('c'); return Plotly.newPlot('c', f.data, {...f.layout, dragmode: false}) }",
            json.loads(str(figure.to_json())),
        )
        return page.evaluate(script)

    yield look
    page.close()


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 40])
def test_the_validation_band_has_no_dots_however_few_steps_there_are(drawn, count):
    figure = figures.validation_curve([Step(1, i, None, 0.1, 0.5, 0.4, 0.3, 0.5, 60, i == 0) for i in range(count)])
    dots, bars = drawn(figure, "['.point', '.yerror'].map(x => document.querySelectorAll(`#c ${x}`).length)")
    assert dots == 2 * count, "of accuracy and of preference accuracy"
    assert bars == (count == 1), "one step has no band, but a bar"


def circuit(layers: int, heads: int = 4, neurons: int = 50, share: float = 0.1, epochs: int = 6) -> CircuitView:
    sizes = np.tile([heads, 1, 1, neurons], (layers, 1))
    history = (np.random.default_rng(0).random((epochs, int(sizes.sum()))) < share).astype(np.float32)
    return CircuitView(history[-1], history, np.zeros(1, np.float32), sizes, "epochs")


@pytest.mark.parametrize("layers", [1, 2, 6, 26, 60])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_bars_of_neurons_have_one_baseline_upright_numbers_and_whole_ticks(drawn, layers, share):
    baselines, ticks, turned = drawn(
        figures.neurons_by_layer(circuit(layers, share=share)),
        """[document.querySelectorAll('#c .zerolinelayer path').length,
            [...document.querySelectorAll('#c .xtick text')].map(x => x.textContent),
            document.querySelectorAll('#c .bartext[transform*=rotate]').length]""",
    )
    assert (baselines, turned) == (1, 0)
    assert len(ticks) > 1
    assert all(tick.isdigit() for tick in ticks)


@pytest.mark.parametrize(("share", "epochs"), [(0.0, 1), (0.0, 5), (0.3, 1), (0.3, 40), (1.0, 5)])
def test_the_size_of_the_circuit_is_on_its_axis_even_where_it_is_empty(drawn, share, epochs):
    view = circuit(2, share=share, epochs=epochs)
    points, names, ticks = drawn(
        figures.gates_over_training(view),
        """[document.querySelectorAll('#c .point').length, document.querySelector('#c .legendtext').textContent,
            [...document.querySelectorAll('#c .y2tick text, #c .xtick text')].map(x => x.textContent)]""",
    )
    assert points == epochs
    assert ("logarithm" in names) == (share > 0)
    assert len(ticks) == len(set(ticks)) or epochs <= 12
    assert all(re.fullmatch(r"[\d,]+", tick) for tick in ticks if share), "whole epochs and components"


def test_names_that_are_long_empty_or_markup_leave_room_for_the_figure(drawn, mended):
    names = [LONG.format("a"), LONG.format("b"), MARKUP, "", "名🙂"]
    found = [Effect("test", None, name, 9, 0.5, 0.5, 0.0, -0.3, 0.3, 0, 0) for name in names]
    shown, width = drawn(
        figures.forest(found, Run.load(mended).summary),
        """[[...document.querySelectorAll('#c .ytick text')].map(x => x.textContent),
            document.getElementById('c')._fullLayout.xaxis._length]""",
    )
    assert len(set(shown)) == len(shown), "names that begin alike are told apart"
    assert {"(no name)", "名🙂"} <= set(shown)
    assert max(map(len, shown)) <= figures.LONGEST
    assert width > 350


@pytest.mark.parametrize("lambdas", [[0.01], [0.01, 0.0101], [0.0, 0.1], [1e-6, 1e-3, 10.0]])
def test_a_sweep_names_its_lambdas_without_repeating_digits(drawn, lambdas):
    figure = figures.density_sweep([Trial(value, 0.1) for value in lambdas], lambdas[0])
    ticks = drawn(figure, "[...document.querySelectorAll('#c .xtick text')].map(x => x.textContent)")
    assert len(ticks) == len(set(ticks)) > 0


def test_the_command_writes_the_report_again(mended, tmp_path, capsys):
    again = tmp_path / mended.name
    shutil.copytree(mended, again)
    (again / "report.html").unlink()
    assert cli.main(["report", str(again), "--redo", "--quiet"]) == 0
    assert "report.html in a browser" in capsys.readouterr().err.replace("\n", "")
    assert (again / "report.html").read_text() == (mended / "report.html").read_text()
