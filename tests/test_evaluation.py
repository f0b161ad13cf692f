import pytest
import torch

from cca import evaluation
from cca.anatomy import anatomy
from cca.delta import Delta
from cca.evaluation import drift


def _plain_drift(model, prompter, delta: Delta, problems) -> float:
    """KL(base || updated) token by token, one problem at a time, the weights themselves changed."""
    total, count = 0.0, 0
    for problem in problems:
        prompt, answer = prompter.prompt(problem), prompter.reference(problem.solution)
        ids = torch.tensor([[*prompt, *answer]])
        base = model(input_ids=ids).logits[0].log_softmax(-1)
        with delta.applied(model):
            updated = model(input_ids=ids).logits[0].log_softmax(-1)
        for place in range(len(prompt) - 1, len(prompt) + len(answer) - 1):
            total += torch.nn.functional.kl_div(updated[place], base[place], log_target=True, reduction="sum").item()
            count += 1
    return total / count


def test_drift_is_the_mean_divergence_over_the_tokens_of_the_solutions(bundled, prompter, problems, monkeypatch):
    parts = anatomy(bundled.model)
    rows = parts.rows(torch.rand(parts.size, generator=torch.Generator().manual_seed(0)) > 0.5)
    delta = Delta.zeros(bundled.model, rows)
    for changed in delta.weights.values():
        changed.values.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    few = problems[::17]
    plain = _plain_drift(bundled.model, prompter, delta, few)
    assert plain > 1e-5
    assert drift(bundled.model, prompter, delta, few, batch=4) == pytest.approx(plain, rel=1e-3)
    monkeypatch.setattr(evaluation, "_LOGITS", 1)  # one problem at a time
    assert drift(bundled.model, prompter, delta, few, batch=4) == pytest.approx(plain, rel=1e-3)
    assert drift(bundled.model, prompter, Delta.zeros(bundled.model, rows), few, batch=4) == pytest.approx(0, abs=1e-6)
