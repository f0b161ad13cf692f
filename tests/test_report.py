"""The report of a real run in a real browser: it says what the run found, works offline, and shows markup as text."""

import json
import shutil
from pathlib import Path

import pytest

from cca import cli
from cca.folder import RunFolder
from cca.records import Pivot, Problem, Score
from cca.run import compare
from cca.run.run import Run
from cca.show import words
from cca.show.report.page import shown_pivots, write_report
from cca.show.views import pivot_views

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
    assert MARKUP.split("{")[0] in page.inner_text(".chart[data-chart='forest']")


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


def test_the_command_writes_the_report_again(mended, tmp_path, capsys):
    again = tmp_path / mended.name
    shutil.copytree(mended, again)
    (again / "report.html").unlink()
    assert cli.main(["report", str(again), "--redo", "--quiet"]) == 0
    assert "report.html in a browser" in capsys.readouterr().err.replace("\n", "")
    assert (again / "report.html").read_text() == (mended / "report.html").read_text()
