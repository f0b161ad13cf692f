import random
from typing import Any

import pytest

from cca.errors import InputError
from cca.problems.gsm_symbolic import SMALL_TEMPLATES, is_reserved, is_within, reserved_instances, sample
from cca.problems.skills import SKILLS, reserved_skill_instances, sample_skill
from cca.problems.sources import open_source
from cca.problems.splits import ProblemOptions, build_problems, held_out_templates, scaled

SUITE: dict[str, Any] = {
    "source": open_source("gsm-symbolic", SMALL_TEMPLATES, 60),
    "options": ProblemOptions(train=3, validation=2, test=3, held_out=0.2),
    "transfer": tuple(SKILLS)[:3],
    "retention": tuple(SKILLS)[3:],
    "per_skill": 5,
    "seed": 0,
}


def test_no_problem_of_a_run_is_among_the_training_text_of_the_bundled_model():
    """Training draws only unreserved questions, runs only reserved ones."""
    from mixture import documents, plant

    problems = build_problems(**SUITE)
    assert all(is_reserved(p.question) for p in problems)
    prompts = {f"Q: {p.question}\nA:" for p in problems}
    planted = plant(1)
    for document in (d for step in range(12) for d in documents(1, step, 50, planted)):
        prompt = document.pieces[0][0]
        assert prompt not in prompts
        question = prompt.removeprefix("Q: ").removesuffix("\nA:")
        assert document.source == "drills" or not is_reserved(question)


def test_about_a_fifth_of_questions_is_reserved():
    rng = random.Random(0)
    share = sum(is_reserved(sample(43, rng).question) for _ in range(1000)) / 1000
    assert 0.15 < share < 0.25


def test_splits_are_disjoint_and_templates_are_held_out_whole():
    problems = build_problems(**SUITE)
    assert len({p.id for p in problems}) == len({p.question for p in problems}) == len(problems)
    kept_out = held_out_templates([str(t) for t in SMALL_TEMPLATES], 0.2, 0)
    assert len(kept_out) == 8
    for problem in problems:
        if problem.skill is None:
            assert (problem.split == "held_out") == (problem.template in kept_out)


def test_problems_repeat_with_their_seed_and_differ_by_it():
    assert build_problems(**SUITE) == build_problems(**SUITE)
    other: dict[str, Any] = {**SUITE, "seed": 1}
    assert build_problems(**SUITE) != build_problems(**other)


def test_numbers_stay_within_the_bound_and_solutions_end_with_the_answer():
    for template in SMALL_TEMPLATES:
        item = next(reserved_instances(template, 0, 60))
        assert is_within(f"{item.question} {item.solution}", 60)
        assert float(item.solution.rsplit("#### ", 1)[1]) == float(item.answer)


def test_a_bound_on_numbers_reads_thousands_and_decimals():
    assert is_within("1,200 and 3.5", 1200) and not is_within("1,200 and 3.5", 1199)
    assert is_within("none", 0)
    assert is_within("60.25", 61) and not is_within("60.25", 60)
    assert not is_within("0.333", 60), "a number that was rounded by the machine, not by a person"


def test_a_template_with_few_instances_gives_each_split_its_share():
    options = ProblemOptions(train=30, validation=10, test=60, held_out=0.0)
    problems = build_problems(open_source("gsm-symbolic", (53, 16), 60), options, seed=0)
    full = [p.split for p in problems if p.template == "16"]
    few = [p.split for p in problems if p.template == "53"]
    assert [full.count(s) for s in ("train", "validation", "test")] == [30, 10, 60]
    assert 10 < len(few) < 50
    assert few.count("train") == pytest.approx(0.3 * len(few), abs=1)
    assert few.count("test") == pytest.approx(0.6 * len(few), abs=1)


def test_a_template_with_next_to_no_instances_is_named():
    with pytest.raises(InputError, match="only 2 distinct instances of template 53: too few for train"):
        scaled({"train": 5, "validation": 1, "test": 5}, 2, "distinct instances of template 53:")


def test_an_unknown_template_or_skill_is_named():
    with pytest.raises(InputError, match=r"no template 1000; it has 0, 1, 2, 3, 4 \.\.\. 99"):
        open_source("gsm-symbolic", (1000,), 60)
    with pytest.raises(InputError, match="no skill 'chain_sums'; it has for example chain_sum"):
        sample_skill("chain_sums", random.Random(0))


def test_any_skill_of_reasoning_gym_can_be_drawn_at_its_own_settings():
    draw = reserved_skill_instances("gcd", 0)
    first = [next(draw) for _ in range(3)]
    assert all(item.template == "gcd" and item.answer.isdigit() for item in first)


@pytest.mark.parametrize("skill", SKILLS)
def test_skills_have_distinct_reserved_problems(skill):
    draw = reserved_skill_instances(skill, 0)
    questions = [next(draw).question for _ in range(50)]
    assert len(set(questions)) == 50
    assert all(is_reserved(q) for q in questions)
