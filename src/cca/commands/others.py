"""What the commands do that are no stages: problems, graders, comparisons, merging, showing.

Heavy imports stay inside the functions. Each returns the exit code.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cca.errors import InputError

if TYPE_CHECKING:
    from cca.problems.templates.annotated import TemplateCheck
    from cca.run.compare import Plan


def _console(width: int) -> Any:
    """For people, on stderr; `width` columns where that is no terminal."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, width=None if sys.stderr.isatty() else width)


def dry_run(config: Any, as_json: bool) -> int:
    from cca.run.plan import plan

    found = plan(config)
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    from cca.show.terminal import show_plan

    show_plan(_console(110), found)
    return 0


def compare(options: argparse.Namespace) -> int:
    from cca.run import compare
    from cca.run.pipeline import default_folder
    from cca.show.progress import make_display

    overrides = list(options.overrides)
    if options.model:
        overrides.append(f"model.path={json.dumps(options.model)}")
    chosen = compare.plan(options.config, overrides, options.arms, options.seeds, dict(map(_rate, options.rates)))
    default = default_folder(options.config)
    out = options.out or default.with_name(f"compare-{default.name}")
    compare.run_arms(
        out, chosen, make_display(options.quiet, keep=False), lambda text: print(text, file=sys.stderr, flush=True)
    )
    found = compare.table(out, chosen)
    compare.write(out, found)
    _report_comparison(out, chosen, found)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    from cca.show.terminal import WIDE, show_comparison

    show_comparison(_console(WIDE), found)
    print(f"\nThe same table: {out / 'comparison.md'}, as JSON: {out / 'comparison.json'}", file=sys.stderr)
    print(f"Open {out / 'report.html'} in a browser", file=sys.stderr)
    return 0


def _report_comparison(out: Path, chosen: "Plan", found: dict[str, Any]) -> None:
    """The report of the first seed's first arm, with the table of all arms."""
    from cca.folder import RunFolder
    from cca.run.compare import arm_folder
    from cca.run.workspace import make_prompter
    from cca.show.report.page import write_report

    seed, arm = chosen.seeds[0], chosen.arms[0]
    folder = RunFolder.open(arm_folder(out, seed, arm))
    write_report(out / "report.html", folder, make_prompter(chosen.config(arm, seed)), found)


def _rate(text: str) -> tuple[str, float]:
    arm, _, rate = text.partition("=")
    try:
        return arm, float(rate)
    except ValueError:
        raise InputError(f"--rate {text!r} is not of the form ARM=RATE, for example bias=0.3") from None


def problems(options: argparse.Namespace) -> int:
    from cca.folder import write_text
    from cca.problems.listing import lines, verdicts
    from cca.problems.sources import open_source

    if options.n < 1:
        raise InputError(f"-n {options.n} asks for nothing; give at least 1")
    if options.check:
        return _check_problems(verdicts(options.source, options.n, options.seed), options.n)
    source = open_source(options.source)
    found = lines(source, options.n, options.seed)
    if options.out is None:
        for line in found:
            print(line)
        return 0
    if not options.out.parent.is_dir():
        raise InputError(f"there is no folder {options.out.parent} for --out; make it first")
    text = [line + "\n" for line in found]
    write_text(options.out, "".join(text))
    print(f"wrote {len(text)} problems of {len(source.templates)} templates to {options.out}", file=sys.stderr)
    return 0


def _check_problems(found: Iterable["TemplateCheck"], wanted: int) -> int:
    failed = checked = 0
    for verdict in found:
        checked += 1
        failed += bool(verdict.failures)
        size = f"{verdict.distinct} distinct" + (f", all there are: {verdict.maximum}" if verdict.maximum else "")
        if verdict.maximum and verdict.maximum > wanted:
            size = f"{verdict.distinct} distinct of {verdict.maximum}"
        print(f"{'FAIL' if verdict.failures else 'ok  '} {verdict.name}: " + "; ".join([size, *verdict.failures]))
        for note in verdict.notes:
            print(f"     note: {note}")
    print(f"{checked} templates, {failed} failed", file=sys.stderr)
    return 1 if failed else 0


def merge(options: argparse.Namespace) -> int:
    from cca.folder import RunFolder
    from cca.run.config import load_config
    from cca.run.merge import merge

    folder = RunFolder.open(options.run)
    if not folder.finished("update"):
        raise InputError(f"{options.run} has no finished update yet; finish it with: cca run --out {options.run}")
    folder.verify(["update"])
    rounding = merge(folder, load_config(folder.file("config.toml")), options.folder, options.dtype)
    print(
        f"merged into {rounding.dtype}: {rounding.unchanged:.1%} of the changed numbers rounded to nothing; what is "
        f"left departs from the delta by {rounding.error:.1%} of its size",
        file=sys.stderr,
    )
    if rounding.error > 0.1:
        print("warning: much of the update is lost to rounding; --dtype float32 keeps all of it", file=sys.stderr)
    print(f"wrote {options.folder}; load it with AutoModelForCausalLM.from_pretrained", file=sys.stderr)
    return 0


def print_summary(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    from cca.show.terminal import show_summary

    show_summary(_console(120), summary)


def grade(options: argparse.Namespace) -> int:
    """List the traces of a run on which its grader and another disagree."""
    from cca.folder import RunFolder
    from cca.grading.graders import disagreements, load_grader
    from cca.records import Problem, TracePair
    from cca.run.config import load_config

    folder = RunFolder.open(options.run)
    pairs = folder.read("traces.jsonl", TracePair)
    if not pairs:
        raise InputError(f"{options.run} has no traces yet; make them with: cca trace {options.run}")
    name = load_config(folder.file("config.toml")).problems.grader
    first, second = load_grader(name), load_grader(options.grader)
    gold = {p.id: p.answer for p in folder.read("problems.jsonl", Problem)}
    items = [
        (f"{pair.problem}, {kind}", trace.text, gold[pair.problem])
        for pair in pairs
        for kind, trace in pair.by_kind().items()
    ]
    found = disagreements(items, first, second)
    if options.json:
        records = [{**d._asdict(), "first": d.first._asdict(), "second": d.second._asdict()} for d in found]
        print(
            json.dumps(
                {"first": name, "second": options.grader, "traces": len(items), "disagreements": records}, indent=1
            )
        )
        return 0
    print(f"{name} and {options.grader} disagree on {len(found)} of {len(items)} traces", file=sys.stderr)
    for d in found[: options.n]:
        said = (
            f"{g} reads {v.answer!r}: {'right' if v.correct else 'wrong'}"
            for g, v in zip((name, options.grader), (d.first, d.second), strict=True)
        )
        print(f"\n{d.id}, gold {d.gold!r}\n  " + "\n  ".join(said) + f"\n  ends: {d.end!r}")
    return 0
