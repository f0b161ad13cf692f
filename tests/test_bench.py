"""The benchmark works at its smallest size, its methods agree, and a bar that is missed is told."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import bench
import branch_search
import circuit_step
import end_to_end
import generation
import growth
import pytest
import timing
import update_step
import work
from conftest import random_pivots, tiny_qwen2
from lines import Line, Setting, missed, said_by
from timing import Kept, Passes, in_turns

from cca.method.options import TraceOptions
from cca.model.components import find_components
from cca.model.open import Model

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
QUICK = Setting(quick=True)


@pytest.fixture
def small(bundled) -> Model:
    """A random model that is asked as the bundled one is."""
    network = tiny_qwen2()
    return replace(bundled, name="tiny", network=network, components=find_components(network))


@pytest.fixture(scope="module")
def traced(bundled) -> work.Traced:
    return work.Traced.of(bundled, work.problems(2, 1), 48)


def measured(lines) -> list[Line]:
    found = list(lines)
    for line in found:
        assert line.cca is not None and line.cca >= 0, line
        assert line.floor is None or line.floor > 0, line
        assert line.row().startswith(line.what)
    return found


def test_a_bar_is_missed_from_its_own_side_and_a_line_without_figures_misses_none():
    fast, slow = Line("a", cca=1.0, plain=10.0, bar=10), Line("b", cca=1.0, plain=9.9, bar=10)
    small, large = (
        Line("c", cca=0.6, plain=1.0, bar=0.6, share=True),
        Line("d", cca=0.7, plain=1.0, bar=0.6, share=True),
    )
    skipped, nothing = Line("e", bar=10, note="skipped"), Line("f", cca=0, plain=5.0, unit="tokens", bar=10)
    assert missed([fast, slow, small, large, skipped, nothing]) == [slow, large]
    assert "reached" in fast.row()
    assert "MISSED" in large.row()
    assert "0.70x" in large.row()
    assert "<= 0.6x" in large.row()


def test_the_exit_code_is_1_where_a_bar_is_missed_or_a_part_failed():
    good, bad = Line("step", cca=1.0, plain=50.0, bar=40), Line("step", cca=1.0, plain=30.0, bar=40)
    assert bench.ended({"circuit_step": [good]}, []) == (["1 of 1 bars that were measured are reached"], 0)
    said, code = bench.ended({"circuit_step": [good], "growth": [bad]}, [])
    assert (code, said[0]) == (1, "MISSED: growth, step: 30.00x")
    assert bench.ended({"circuit_step": [good]}, ["growth ended with exit code 1"])[1] == 1


@pytest.mark.parametrize(("body", "code"), [("", 0), ("raise SystemExit(3)", 1)], ids=["well", "failed"])
def test_a_part_is_a_process_whose_lines_come_into_the_table(tmp_path, monkeypatch, capsys, body, code):
    line = 'print(\'{"what": "a step", "cca": 2.0, "plain": 90.0, "bar": 40}\')'
    (tmp_path / "growth.py").write_text(f"print('said besides')\n{line}\n{body}\n")
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "bench.py"))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "growth", "--json"])
    monkeypatch.delenv("CCA_BENCH_MODEL", raising=False)
    assert bench.main() == code
    said = capsys.readouterr()
    assert json.loads(said.out)["growth"][0]["plain"] == 90.0
    assert "45x" in said.err
    assert "said besides" not in said.err
    assert ("FAILED: growth ended with exit code 3" in said.err) is bool(code)


def test_every_part_has_a_file_and_an_unknown_one_is_refused(monkeypatch, capsys):
    assert all((BENCHMARKS / f"{name}.py").exists() for name in bench.PARTS)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "speed"])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    assert "there is no part speed" in capsys.readouterr().err


def test_other_work_on_the_machine_is_warned_of():
    assert "WARNING" not in bench.machine(0.3)
    assert "WARNING" in bench.machine(1.1)


def test_methods_take_turns():
    order: list[str] = []
    times = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert order == list("ababab")
    assert len(times["a"].all) == 2


def test_passes_tell_what_was_read_and_what_was_written(bundled):
    with Passes().of(bundled.network) as passes:
        generation.ours(bundled.network, [[5, 6, 7], [8, 9]], 0.0, 3)
    assert passes.written == 16, "two rows, which are eight with those that fill up, in two passes after the prompts"
    assert passes.counts == {(8, 8): 3}


def test_branch_search_finds_the_same_pivots_by_every_method(traced):
    pairs = traced.shortest(1)
    for plain in (
        branch_search.Generated(traced, pairs, 64),
        lambda: branch_search.token_by_token(traced, pairs),
    ):
        tokens, seconds = measured(branch_search.against("search", traced, pairs, plain, 1))
        assert tokens.plain and tokens.cca and tokens.plain > tokens.cca
        assert seconds.unit == "s"


def test_a_search_that_finds_other_pivots_is_no_comparison(traced):
    with pytest.raises(AssertionError, match="other pivots"):
        list(branch_search.against("search", traced, traced.shortest(1), lambda: [], 1))


def test_the_circuits_steps_agree_and_have_their_lines(small):
    pivots = random_pivots(8, small.network.config.vocab_size)
    found = measured(circuit_step.step_lines("tiny", small, pivots, 1, few_shot=True))
    assert [(line.what.rpartition(", ")[2], line.bar) for line in found] == [("padded", 40), ("one at a time", 40)]
    (some,) = measured(circuit_step.step_lines("tiny", small, pivots, 1, at_once=2))
    assert some.what.endswith("padded, 2 at once")
    measured([circuit_step.reading("tiny", small, pivots, 1)])


def test_the_updates_steps_agree_and_have_their_lines(small, monkeypatch):
    pivots = random_pivots(5, small.network.config.vocab_size)
    monkeypatch.setattr(update_step, "at_work", lambda *_: (small, pivots))
    full, packed, lora = measured(update_step.timed(QUICK, "tiny", 1))
    assert (full.bar, packed.bar, lora.bar) == (0.75, None, None)
    assert not any(p.requires_grad for p in small.network.parameters())


def test_lora_has_about_as_many_parameters_as_the_circuit(small):
    delta = update_step.Delta.zeros(small, work.a_circuit(small))
    adapted = update_step.lora(small.network, delta)
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    of_a_rank = sum(sum(small.network.get_submodule(n).weight.shape) for n in update_step.projections(delta))
    assert abs(count - delta.parameter_count) <= max(of_a_rank / 2, of_a_rank - delta.parameter_count)


@pytest.mark.skipif(not timing.CLEAR.exists(), reason="only Linux tells")
def test_memory_is_what_the_work_holds_beyond_what_was_held_before():
    held = Kept(lambda: b"\1" * 2**28)
    assert timing.peak_beyond(held) == pytest.approx(0.25, abs=0.05)
    assert timing.peak_beyond(lambda: None) < 0.05


def test_generation_writes_the_same_tokens(small, monkeypatch):
    monkeypatch.setattr(generation, "VLLM", Path("there-is-none"))
    *found, skipped = generation.written(small, "tiny", "float32", {2: 1}, 3)
    assert [line.what.split(", ")[2] for line in measured(found)] == ["greedy", "sampled"]
    assert "100% of the rows the same" in found[0].note
    assert "vLLM is not built" in skipped.note


def test_time_grows_from_the_smallest_size(small):
    first, second = measured(growth.of_lengths(small, (5, 9), 8, 1))[:2]
    assert not first.note
    assert "x the time" in second.note
    assert len(measured(growth.of_pivots(small, (8, 16), 5, 1))) == 4


def test_the_stages_of_both_methods_agree(bundled, monkeypatch):
    monkeypatch.setattr(end_to_end, "TRACES", TraceOptions(samples=3, max_new_tokens=40, skip_solved=0))
    monkeypatch.setattr(end_to_end, "GATES", end_to_end.GATES.changed({"min_steps": 2}))
    found = measured(end_to_end.chain(bundled, work.problems(2, 1)))
    assert [line.what.split(": ")[-1] for line in found] == ["traces", "pivots", "circuit", "update", "all of them"]


def test_what_a_part_prints_is_read_as_its_lines():
    line = Line("a", cca=1.0, plain=2.0, unit="GiB", share=True, bar=0.6, note="b")
    assert list(said_by(["progress\n", json.dumps(line.__dict__)])) == [line]
