"""Folders of annotated templates: one that is wrong, files that are none, and verdicts on those made from a problem."""

import codecs
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cca import cli, load_problems
from cca.errors import InputError
from cca.problems.sources import open_source
from cca.problems.splits import ProblemOptions, build_problems
from cca.problems.templates.annotated import Template, check, load_templates
from cca.run.config import load_config

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "gsm_symbolic_templates"


def record(asked: str, init: Sequence[str], conditions: Sequence[str], result: str, solution: str, **more: Any) -> str:
    lines = [asked, "#init:", *(f"- {line}" for line in init), "#conditions:", *(f"- {line}" for line in conditions)]
    annotated = "\n".join([*lines, f"#answer: {result}"])
    return json.dumps({"question_annotated": annotated, "answer_annotated": solution, **more})


def plums(number: int = 0, **changed: Any) -> str:
    parts = {
        "asked": f"Shop {number} has {{n,12}} plums and sells {{k,5}}. How many are left?",
        "init": ["$n = range(10, 40)", "$k = range(1, 9)"],
        "conditions": [],
        "result": "n - k",
        "solution": "{n} - {k} = {n-k}\n#### {n-k}",
    }
    return record(**(parts | changed))


WRONG = {
    "an unknown list": plums(init=["$n = sample(nowhere)", "$k = [1]"]),
    "no json": '{"question_annotated": ',
    "another kind of text": b"\xff\xfe{\x00}\x00",
    "conditions that nothing meets": plums(conditions=["n < 0"]),
    "an expression without a value": plums(result="(n - k) / (n - n)"),
    "an answer that its solution contradicts": plums(result="n + k"),
    "a misspelt key": plums().replace("question_annotated", "question_anotated"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five good templates, and files that are none."""
    for number in range(5):
        (tmp_path / f"t{number}.json").write_text(plums(number))
    (tmp_path / "dataset_info.json").write_text('{"builder_name": "json", "features": {}}')
    (tmp_path / "._t0.json").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "tables.json").write_text('{"moods": ["glad"]}')
    (tmp_path / "old.json").mkdir()
    return tmp_path


def test_the_templates_of_the_first_real_model_are_sound_and_enough_for_its_config():
    root = Path(__file__).parent.parent
    found = load_templates(root / "examples" / "one_step")
    assert len(found) == 20
    asked = load_config(root / "configs" / "smollm2.toml").problems
    wanted = asked.train + asked.validation + asked.test
    said = [check(template, n=wanted) for template in found]
    assert [(one.name, one.distinct, one.failures) for one in said if one.distinct < wanted or one.failures] == []


def test_files_that_are_no_templates_are_left_out(folder):
    assert [template.name for template in load_templates(folder)] == [f"t{n}" for n in range(5)]
    assert open_source(folder).templates == tuple(f"t{n}" for n in range(5))
    for file in folder.glob("t?.json"):
        file.unlink()
    with pytest.raises(InputError, match="no templates"):
        load_templates(folder)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_other_templates_are_written_and_a_wrong_one_is_named(folder, tmp_path, capsys, wrong):
    (tmp_path / "out").mkdir()
    (folder / "t2.json").write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
    assert cli.main(["problems", str(folder), "-n", "4"]) == 1
    out, error = capsys.readouterr()
    assert {json.loads(line)["template"] for line in out.splitlines()} == {"t0", "t1", "t3", "t4"}
    assert len(out.splitlines()) == 16
    assert "t2.json" in error and "1 of 5 templates left out" in error
    assert cli.main(["problems", str(folder), "-n", "4", "--out", str(tmp_path / "out" / "o.jsonl")]) == 1
    assert (tmp_path / "out" / "o.jsonl").read_text() == out
    assert "wrote 16 problems of 4 templates" in capsys.readouterr().err
    assert cli.main(["problems", str(folder), "--check"]) == 1
    assert re.findall("^FAIL (.*?):", capsys.readouterr().out, re.MULTILINE) == ["t2"]


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_run_is_refused_unless_it_names_good_templates_alone(folder, wrong):
    (folder / "t2.json").write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
    options = ProblemOptions(train=4, validation=2, test=2, held_out=0.0)
    with pytest.raises(InputError, match=r"t2\.json.*problems\.templates"):
        build_problems(open_source(folder), options, seed=0)
    with pytest.raises(InputError, match=r"t2\.json.*problems\.templates"):
        load_problems(folder, n=9)
    good = ["t0", "t4"]
    assert {p.template for p in build_problems(open_source(folder, good), options, seed=0)} == set(good)
    assert {p.template for p in load_problems(folder, templates=good, n=9)} == set(good)


def test_where_no_template_is_right_nothing_is_written(folder, capsys):
    for file in folder.glob("t?.json"):
        file.write_text("{")
    assert cli.main(["problems", str(folder), "--out", str(folder / "out.jsonl")]) == 2
    assert re.search(r"t\d\.json", capsys.readouterr().err)
    assert cli.main(["problems", str(folder / "t1.json")]) == 2
    assert "t1.json" in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()


def test_wrong_tables_are_named_once(folder, capsys):
    for text in ("[" * 100_000, '{"moods": ["\\ud800"]}', '{"moods": [NaN]}'):
        (folder / "tables.json").write_text(text)
        for more in ([], ["--check"]):
            assert cli.main(["problems", str(folder), *more]) == 2
            assert capsys.readouterr().err.count("tables.json") == 1


@pytest.mark.parametrize("tables", ["tables.json", "tables.toml"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, tables):
    text = '{"fruits": ["plum"]}' if tables.endswith("json") else 'fruits = ["plum"]'
    (tmp_path / tables).write_bytes(codecs.BOM_UTF8 + text.encode())
    own = record("{n,2} {f,plum}s?", ["$n = range(3, 9)", "f = sample(fruits)"], [], "n", "#### {n}")
    (tmp_path / "own.json").write_bytes(codecs.BOM_UTF8 + own.encode())
    (found,) = load_templates(tmp_path)
    assert {item.question for item in found.instances(0)} == {f"{n} plums?" for n in range(3, 9)}
    assert [template.name for template in load_templates(tmp_path / "own.json")] == ["own"]


ORIGINAL = {"question": "A shop has 12 plums and sells 5. How many are left?", "answer": "12-5=7\n#### 7"}
MORE = "A shop has {n,12} plums and sells {k,5}. Then {m,3} more arrive. How many are left?"


def modified(result: str = "n - k + m", solution: str = "#### {n-k+m}", asked: str = MORE, **more: Any) -> Template:
    init = ["$n = range(10, 40)", "$k = range(1, 9)", "$m = range(1, 5)"]
    return Template.parse(record(asked, init, [], result, solution, **(ORIGINAL | more)), "own")


def test_a_template_that_says_more_than_its_problem_passes_with_a_note():
    found = check(modified())
    assert (found.failures, found.distinct) == ((), 50)
    note = "renders, but its default is of another question: the default answer is 10, not 7"
    assert note in found.notes


def test_a_template_that_answers_its_own_problem_wrongly_fails():
    asked = "A shop has {n,12} plums and sells {k,5}. How many are left?"
    found = check(modified("n + k", "#### {n+k}", asked))
    assert found.failures == ("the default answer is 17, not 7",)
    assert "the default answer is 17, not 7" in check(modified("n + k", "#### {n+k}", asked, question=None)).failures


def test_the_answer_to_another_question_does_not_decide_what_is_wrong():
    """The solution still ends as that of the problem the template was made from."""
    found = modified(solution="#### {n-k}")
    assert not found.answers_wrongly
    assert "the solution ends with 7, not 10" in check(found).failures[0]
    with pytest.raises(InputError, match="contradicts itself"):
        next(found.instances(0))


def test_a_question_with_two_answers_fails():
    """A variable that the question does not show has to be fixed by a condition."""
    asked, init = "{n,5} and some more make fewer than ten. How many more?", ["$n = range(2, 9)", "$m = range(1, 9)"]
    loose = Template.parse(record(asked, init, ["n + m < 10"], "m", "#### {m}"), "own")
    assert "no condition decides" in check(loose).failures[0]
    tight = Template.parse(record(asked, init, ["n + m < 10", "n + m > 8"], "m", "#### {m}"), "own")
    assert check(tight).failures == ()


def test_defaults_that_fix_no_value_of_a_hidden_variable_are_a_note_and_it_is_drawn_all_the_same():
    asked, init = "A square has {n,12} tiles. How many has a side?", ["$n = range(400, 9000)", "$ans = range(20, 100)"]
    found = Template.parse(record(asked, init, ["ans * ans == n"], "ans", "#### {ans}"), "own")
    verdict = check(found)
    assert (verdict.distinct, verdict.failures) == (50, ())
    assert any("no default for ans" in note for note in verdict.notes)
    assert all(int(item.question.split()[3]) == int(item.answer) ** 2 for item in found.instances(0))


def test_defaults_that_could_not_be_drawn_may_contradict_themselves():
    asked, init = "{n,7} plums for {k,2}: how many each?", ["$n = range(2, 30)", "$k = [2]"]
    solution, result = "#### {n / k}", "n // k"
    even = Template.parse(record(asked, init, ["divides(n, k)"], result, solution), "own")
    assert check(even).failures == ()
    assert any("contradicts itself" in note for note in check(even).notes)
    assert "contradicts itself" in check(Template.parse(record(asked, init, [], result, solution), "own")).failures[0]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published templates are not here")
def test_published_templates_that_are_made_to_say_more_still_pass():
    failures = {}
    for file in sorted(PUBLISHED.glob("*.json"))[::4]:
        old = json.loads(file.read_text())
        asked = old["question_annotated"].replace("#init:", "Then add {extra,3}.\n\n#init:\n- $extra = range(2, 9)", 1)
        asked = re.sub(r"#answer\s*[:=]\s*\{?([^{}]*)\}?\s*$", r"#answer: (\1) + extra", asked)
        solution = re.sub(r"#### *\{(.*)\}", r"#### {(\1) + extra}", old["answer_annotated"])
        new = old | {"question_annotated": asked, "answer_annotated": solution}
        found = check(Template.parse(json.dumps(new), file.stem), 10)
        failures |= {found.name: found.failures} if found.failures else {}
        assert any("of another question" in note for note in found.notes)
    assert not failures
