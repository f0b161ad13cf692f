import random

import pytest

from cca.problems.gsm_symbolic import SMALL_TEMPLATES, sample
from cca.problems.slips import SLIPS, adds_factors, equations, first_difference, stale_operand, stops_early, wrong_sign

FRIENDS = "James has 22 / 2 = 11 friends.\nEmily has 5 * 11 = 55 friends.\n#### 55"
TOYS = "His sister has 19 - 5 = 14 toys.\nTogether, they have 19 + 14 = 33 toys.\n#### 33"


def test_stops_early_drops_the_last_line_and_reports_the_result_before_it():
    assert stops_early(FRIENDS) == "James has 22 / 2 = 11 friends.\n#### 11"


def test_stops_early_leaves_a_single_step_alone():
    assert stops_early("It is 2 + 3 = 5.\n#### 5") is None


def test_wrong_sign_swaps_the_last_sign_and_carries_the_result_into_the_answer():
    assert wrong_sign(TOYS) == "His sister has 19 - 5 = 14 toys.\nTogether, they have 19 - 14 = 5 toys.\n#### 5"


def test_wrong_sign_goes_both_ways():
    assert wrong_sign("There were 20 - 2 = 18 boys.\n#### 18") == "There were 20 + 2 = 22 boys.\n#### 22"


def test_wrong_sign_never_writes_a_negative_result():
    assert wrong_sign("There are 3 + 8 = 11 boys.\n#### 11") is None


def test_adds_factors_turns_the_last_product_into_a_sum():
    assert adds_factors(FRIENDS) == "James has 22 / 2 = 11 friends.\nEmily has 5 + 11 = 16 friends.\n#### 16"


def test_adds_factors_leaves_a_product_before_the_last_step_alone():
    assert adds_factors("It is 5 * 11 = 55.\nSo 55 - 5 = 50.\n#### 50") is None


def test_stale_operand_goes_back_to_the_number_before_the_step_that_changed_it():
    assert stale_operand(TOYS) == "His sister has 19 - 5 = 14 toys.\nTogether, they have 19 + 19 = 38 toys.\n#### 38"


def test_equations_reads_units_currencies_and_fractions():
    text = "He pays 3 packs * $10 = $30.\nThen 48 pages x 1/4 = 12 pages.\nAlso 7+8=15"
    assert [(e.numbers, e.ops, e.result) for e in equations(text)] == [
        (("3", "10"), ("*",), "30"),
        (("48", "1", "4"), ("x", "/"), "12"),
        (("7", "8"), ("+",), "15"),
    ]


def test_equations_leaves_out_what_does_not_hold():
    assert equations("It is 2 + 2 = 5.") == []


@pytest.mark.parametrize("template", SMALL_TEMPLATES)
def test_slips_of_real_solutions_are_wrong_consistent_and_share_the_start(template):
    rng = random.Random(template)
    for _ in range(15):
        item = sample(template, rng, 60)
        for slip in SLIPS.values():
            slipped = slip(item.solution)
            if slipped is None:
                continue
            answer = slipped.rsplit("#### ", 1)[1]
            assert float(answer) != float(item.answer)
            assert slipped.split("\n")[0][:10] == item.solution.split("\n")[0][:10]
            last = equations(slipped)[-1]
            assert float(last.result) == float(answer), "the text after the slip must follow from it"


def test_first_difference_is_the_position_of_the_slip():
    assert first_difference([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    assert first_difference([1, 2], [1, 2, 3]) == 2
