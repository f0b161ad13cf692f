import pytest

from cca.answers import final_text, grade_exact, grade_number, last_number, normal_number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42.", "42"),
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("it costs $1,234.50 in all", "1234.5"),
        ("#### 3.0", "3"),
        ("#### 108.0", "108"),
        ("he owes -5", "-5"),
        ("left with -$5", "-5"),
        ("19-5", "5"),
        ("(19)-5", "5"),
        ("50%-20", "20"),
        ("it was 75%", "75"),
        ("€12", "12"),
        ("about .5 of it", "0.5"),
        ("12,345,678", "12345678"),
        ("no number here", ""),
        ("", ""),
        ("#### 0", "0"),
        ("-0", "0"),
        ("ends with 7,", "7"),
        ("2/3", "3"),
    ],
)
def test_last_number(text, answer):
    assert last_number(text) == answer


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("#### 3.0", "3", True),
        ("#### 1,000", "1000", True),
        ("#### 4", "3", False),
        ("nothing", "3", False),
        ("#### 18", "18.0", True),
    ],
)
def test_grade_number_compares_values(text, gold, correct):
    assert grade_number(text, gold)[1] is correct


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        (" husband", "husband", True),
        ("Husband ", "husband", True),
        ("['56', '25']", "['56', '25']", True),
        ("['56']", "['56', '25']", False),
        (" 07", "7", True),
        ("", "", False),
    ],
)
def test_grade_exact_compares_the_final_text(text, gold, correct):
    assert grade_exact(text, gold)[1] is correct


def test_final_text_follows_the_last_marker():
    assert final_text("1 + 1 = 2\n#### 2") == "2"


def test_normal_number_leaves_text_alone():
    assert normal_number(" nan ") == "nan"
    assert normal_number("ten") == "ten"
