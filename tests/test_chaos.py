"""A run that is killed anywhere, and as often as you like, ends as if nothing had been."""

from chaos import SMALLEST, chaos


def test_a_run_killed_ten_times_at_random_moments_ends_with_the_identical_result(tmp_path):
    kills = list(chaos([SMALLEST], tmp_path, kills=10, seed=0, in_a_row=(5,)))
    assert len(kills) == 10
    assert all(kill.identical for kill in kills), "\n".join(map(str, kills))
    assert any(kill.moment.startswith("change") for kill in kills) and len({kill.stage for kill in kills}) > 2, (
        "\n".join(map(str, kills))
    )
