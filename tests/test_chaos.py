"""A run that is killed anywhere, and as often as you like, ends as if nothing had been."""

from chaos import SMALLEST, chaos


def test_a_run_killed_five_times_at_random_moments_ends_with_the_identical_result(tmp_path):
    kills = list(chaos([SMALLEST], tmp_path, kills=5, seed=2, in_a_row=(5,)))
    assert len(kills) == 5
    assert all(kill.identical for kill in kills), "\n".join(map(str, kills))
    assert any(kill.moment.startswith("change") for kill in kills) and len({kill.stage for kill in kills}) > 2, (
        "\n".join(map(str, kills))
    )
