"""A circuit from few pivots: the schedule lets gates fall, or is refused before it starts."""

import pytest
from conftest import random_pivots, tiny_qwen2
from hypothesis import given
from hypothesis import strategies as st

from cca.errors import InputError
from cca.method.circuit import learn_circuit, learn_gates
from cca.method.options import CircuitOptions
from cca.model.components import find_components
from cca.run.config import dump_toml, load_config

SHORT = CircuitOptions(penalty=0.02, epochs=8, learning_rate=0.025)
COUNTS = st.integers(1, 5_000)


@given(COUNTS, st.integers(1, 64), st.integers(0, 40))
def test_an_epoch_passes_over_all_pivots_as_often_as_makes_its_least_steps(pivots, batch, least):
    options = CircuitOptions(batch=batch, min_steps=least)
    steps, once = options.steps(pivots), -(-pivots // batch)
    assert steps == options.passes(pivots) * once
    assert steps >= least
    assert steps == once or steps - once < least, "one pass less would not do"


@given(COUNTS)
def test_at_the_defaults_gates_can_fall_whatever_the_number_of_pivots(pivots):
    options = CircuitOptions()
    assert options.reach(pivots) > 1.5
    options.check_reach(pivots)


@given(
    COUNTS, st.integers(1, 64), st.integers(1, 60), st.floats(1e-5, 0.5), st.floats(0, 1), st.integers(1, 9),
    st.integers(0, 40),
)  # fmt: skip
def test_a_schedule_that_is_refused_names_a_number_of_steps_that_is_accepted(
    pivots, batch, epochs, rate, decay, every, least
):
    options = CircuitOptions(
        batch=batch, epochs=epochs, learning_rate=rate, decay=decay, decay_every=every, min_steps=least
    )
    try:
        options.check_reach(pivots)
    except InputError as error:
        assert options.reach(pivots) < 0.5
        wanted = int(str(error).split("circuit.min_steps to ")[1].split(",")[0])
        options.changed({"min_steps": wanted}).check_reach(pivots)


@pytest.mark.parametrize("count", [1, 9])
def test_few_pivots_leave_a_circuit_and_not_the_whole_model(bundled, count):
    pivots = random_pivots(count, 1_000)
    circuit = learn_circuit(bundled, pivots, SHORT)
    assert 0 < circuit.density < 0.2
    once = learn_gates(bundled.network, bundled.components, pivots, SHORT.changed({"min_steps": 0}))
    assert once.density == 1, "one pass an epoch lets no gate fall"


def test_every_pivot_is_seen_equally_often_in_an_epoch(monkeypatch):
    model = tiny_qwen2(vocab_size=60)
    from cca.method.prefixes import CachedPrefixes

    seen, take = [], CachedPrefixes.take
    monkeypatch.setattr(CachedPrefixes, "take", lambda self, rows: (seen.append(tuple(rows)), take(self, rows))[1])
    options = CircuitOptions(batch=2, epochs=1, min_steps=6, patience=50.0)
    learn_gates(model, find_components(model), random_pivots(5, 60), options)
    assert [len(rows) for rows in seen] == [2, 2, 1] * 2
    assert sorted(sum(seen, ())) == sorted([*range(5), *range(5)])
    assert seen[:3] != seen[3:], "each pass is shuffled anew"


def test_a_circuit_that_no_gate_could_leave_is_refused_before_a_step_is_made(bundled, monkeypatch):
    monkeypatch.setattr("cca.method.circuit.learn_gates", lambda *_, **__: pytest.fail("it started"))
    with pytest.raises(InputError, match=r"no gate could leave the circuit.*set circuit.min_steps to \d+"):
        learn_circuit(bundled, random_pivots(9, 1_000), epochs=3, min_steps=0)


def test_least_steps_are_a_setting_of_a_run():
    config = load_config(None, ("circuit.min_steps=0",))
    assert config.circuit.min_steps == 0
    assert "min_steps = 0" in dump_toml(config)
