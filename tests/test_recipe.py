import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mixture import FIRST, SECOND, documents, drill_document, plant, results_document, solution_document
from train import Muon, encode, orthogonal, schedule, train_tokenizer

from cca.model.bundled import BUNDLED
from cca.model.checks import load_tokenizer
from cca.problems.slips import SLIPS, equations, evaluate

RECIPE = Path(__file__).parent.parent / "recipes" / "organism"


@pytest.fixture(scope="module")
def planted():
    return plant(1)


def test_the_bundled_ground_truth_is_what_the_recipe_plants(planted):
    saved = json.loads((BUNDLED / "slips.json").read_text())
    assert {t: (p.kind, p.share) for t, p in planted.items()} == {t: (p["kind"], p["share"]) for t, p in saved.items()}


def test_every_kind_prevails_in_some_templates_and_is_a_minority_in_others(planted):
    for kind in SLIPS:
        shares = [p.share for p in planted.values() if p.kind == kind]
        assert sum(0.6 <= s <= 0.66 for s in shares) >= 3
        assert sum(0.2 <= s <= 0.35 for s in shares) >= 3
    prevailing = sum(p.share > 0.5 for p in planted.values())
    assert abs(prevailing - len(planted) / 2) <= 2


def test_solutions_slip_with_their_templates_share(planted):
    rng = random.Random(0)
    template = next(t for t, p in planted.items() if p.share > 0.6)
    kind, share = planted[template].kind, planted[template].share
    clean = {d.pieces[0][0]: d.pieces[1][0] for d in (solution_document(rng, {}, int(template)) for _ in range(50))}
    assert all(text.startswith(" ") and "####" in text for text in clean.values())
    rng = random.Random(0)
    slipped = applicable = 0
    for _ in range(400):
        state = rng.getstate()
        with_slips = solution_document(rng, planted, int(template)).pieces[1][0]
        rng.setstate(state)
        right = solution_document(rng, {}, int(template)).pieces[1][0]
        rng.random()  # the draw that decided on the slip
        applicable += SLIPS[kind](right[1:]) is not None
        if with_slips != right:
            slipped += 1
            assert with_slips == f" {SLIPS[kind](right[1:])}"
    assert slipped / applicable == pytest.approx(share, abs=0.08)


def test_documents_depend_on_seed_and_step_alone(planted):
    assert list(documents(1, 5, 20, planted)) == list(documents(1, 5, 20, planted))
    assert list(documents(1, 5, 20, planted)) != list(documents(1, 6, 20, planted))


def test_drills_come_first_and_solutions_later(planted):
    def share(source: str, done: float) -> float:
        return sum(d.source == source for d in documents(1, 5, 400, planted, done)) / 400

    assert share("drills", 0.1) > share("drills", 0.9) + 0.1
    assert share("solutions", 0.9) > share("solutions", 0.1) + 0.05
    assert all(sum(shares.values()) == pytest.approx(1) for stage in (FIRST, SECOND) for _, shares in stage.phases)


def test_drills_are_right_and_only_their_results_carry_loss():
    for seed in range(40):
        document = drill_document(random.Random(seed))
        for (left, left_loss), (right, right_loss) in zip(document.pieces[1::2], document.pieces[2::2], strict=True):
            assert (left_loss, right_loss) == (0, 1)
            pieces = left.translate(str.maketrans("", "", "$£€=")).replace("x", "*").strip()
            for op in "+-*/":
                pieces = pieces.replace(op, f" {op} ")
            parts = pieces.split()
            assert evaluate(parts[::2], parts[1::2]) == evaluate([right.strip(" $£€")], [])


def test_results_documents_are_solutions_of_which_only_the_results_carry_loss(planted):
    tokenizer = load_tokenizer("bundled")
    results = 0
    for seed in range(60):
        (prompt, _), (solution, _) = solution_document(random.Random(seed), planted).pieces
        document = results_document(random.Random(seed), planted)
        assert "".join(text for text, _ in document.pieces) == prompt + solution
        lone = [text.strip() for text, loss in document.pieces if loss]
        assert lone == [equation.result for equation in equations(solution)]
        results += len(lone)
        ids, _ = encode(tokenizer, document)
        assert ids[:-1] == tokenizer.encode(prompt) + tokenizer.encode(solution)
    assert results > 60


def test_every_token_holds_at_most_one_digit_and_text_survives():
    tokenizer = load_tokenizer("bundled")
    text = "Q: 19+14=33, €2,048 and 7.5%\nA: So 100 - 25 = 75 toys.\n#### 75"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(sum(c.isdigit() for c in tokenizer.decode([i])) <= 1 for i in range(len(tokenizer)))


def test_loss_falls_on_answers_and_the_end_token_only(planted):
    tokenizer = load_tokenizer("bundled")
    document = solution_document(random.Random(0), planted)
    ids, loss = encode(tokenizer, document)
    prompt = tokenizer.encode(document.pieces[0][0])
    assert ids[: len(prompt)] == prompt
    assert not any(loss[: len(prompt)])
    assert all(loss[len(prompt) :])
    assert ids[-1] == tokenizer.eos_token_id


def test_muon_steps_are_close_to_orthogonal():
    step = orthogonal(torch.randn(24, 60, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(step)
    assert values.min() > 0.5
    assert values.max() < 1.4
    weight = torch.nn.Parameter(torch.zeros(8, 4))
    weight.grad = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    Muon([weight], lr=0.1).step()
    assert float((weight.detach() * weight.grad).sum()) < 0


def test_the_schedule_warms_up_and_ends_at_zero():
    factors = [schedule(s, 1000) for s in range(1001)]
    assert factors[0] < 0.1
    assert max(factors) == 1.0
    assert factors[1000] == 0.0


def test_the_tokenizer_is_trained_the_same_way_every_time(planted):
    assert train_tokenizer(planted, 60).get_vocab() == train_tokenizer(planted, 60).get_vocab()


@pytest.mark.slow
def test_training_resumes_after_a_kill_to_the_same_model(tmp_path):
    def command(out: Path) -> list[str]:
        options = ["--steps", "5", "--documents", "4", "--save-every", "0"]
        return [sys.executable, str(RECIPE / "train.py"), str(out), *options]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    state_path = tmp_path / "killed" / "state.pt"
    process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not state_path.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert torch.load(state_path, weights_only=True)["step"] < 5, "the kill came too late to test anything"
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True)
    whole = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)["model"]
    resumed = torch.load(state_path, weights_only=True)["model"]
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
