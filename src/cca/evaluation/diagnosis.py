"""The method's known failure modes: what a run shows of each, and what to do about it."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from cca.evaluation.results import Finding
from cca.method.density import SPARSE, is_near
from cca.records import Metric, Pivot, TracePair, WithoutPivot

MARKS_SHARE = 0.25
"""More pivots than this on punctuation or white space are a warning."""
LEAST_YIELD = 0.1
UNDECIDED = (0.4, 0.6)


def _finding(check: str, fine: bool, message: str, figures: dict[str, Any], advice: str) -> Finding:
    return Finding(check, fine, message, figures, "" if fine else advice)


def is_mark(token: str) -> bool:
    """Whether a token is nothing but punctuation, symbols that carry no arithmetic, and white space."""
    return all(c.isspace() or (unicodedata.category(c)[0] == "P" and c not in "-*/%") for c in token)


def pivots_on_marks(pivots: Sequence[Pivot], decode: Callable[[list[int]], str]) -> Finding:
    """Pivots at which both tokens are punctuation or white space seldom decide an outcome."""
    seen = [(decode([p.desired]), decode([p.undesired])) for p in pivots]
    marks = [pair for pair in seen if is_mark(pair[0]) and is_mark(pair[1])]
    share = len(marks) / len(pivots)
    common = [f"{good!r} not {bad!r}" for (good, bad), _ in Counter(marks).most_common(5)]
    examples = f", such as {'; '.join(common[:3])}" if common else ""
    return _finding(
        "pivots on punctuation",
        share <= MARKS_SHARE,
        f"{share:.1%} of {len(pivots)} pivots choose between punctuation or white space{examples}",
        {"share": share, "examples": common},
        "look at them with cca show pivots; if they are noise, the sampled traces differ in style rather than in "
        "method: lower the temperatures, or try the other pivots.method",
    )


def pivot_yield(pairs: Sequence[TracePair], left_out: Sequence[WithoutPivot], found: int) -> Finding:
    """How many traced problems gave a pivot, and why the others gave none."""
    share = found / len(pairs)
    reasons = dict(Counter(record.reason for record in left_out))
    said = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items()) or "none left out"
    greedy = sum(pair.greedy.correct for pair in pairs) / len(pairs)
    return _finding(
        "pivot yield",
        share >= LEAST_YIELD,
        f"{found} of {len(pairs)} problems gave a pivot ({said}); {greedy:.0%} of the greedy traces are right",
        {"share": share, "without": reasons, "greedy_accuracy": greedy},
        "few problems are both solved and missed by sampling: the model has little latent skill here, or too little is "
        "sampled; raise traces.samples or the temperatures, or choose harder or easier problems",
    )


def density(value: float, penalty: float, target: float | None) -> Finding:
    """The circuit's share of all components."""
    wanted = f"; {target:.2%} was wanted" if target is not None else ""
    return _finding(
        "circuit density",
        value <= SPARSE if target is None else is_near(value, target),
        f"lambda {penalty:g} selects {value:.2%} of the components{wanted}",
        {"density": value, "lambda": penalty},
        "set circuit.target_density=0.016 to search for the lambda of the paper's density, or raise circuit.lambda"
        if target is None
        else "no lambda that was tried gives it; want another, or raise circuit.epochs so that gates settle",
    )


def undecided_gates(gates: Tensor) -> Finding:
    """Gates that ended near the threshold of 0.5: a little more training could have put them on the other side."""
    near = int(((gates > UNDECIDED[0]) & (gates < UNDECIDED[1])).sum())
    circuit = int((gates > 0.5).sum())
    return _finding(
        "undecided gates",
        near <= max(2, 0.2 * circuit),
        f"{near} gates ended between {UNDECIDED[0]} and {UNDECIDED[1]}, beside {circuit} in the circuit",
        {"undecided": near, "circuit": circuit},
        "the circuit depends on where stage 2 stopped; raise circuit.epochs or circuit.patience",
    )


def best_step(metrics: Sequence[Metric], kept: Metric) -> Finding:
    """Where validation peaked."""
    validated = [m.step for m in metrics if m.step > 0]
    first = bool(validated) and kept.step == validated[0] and len(validated) > 1
    return _finding(
        "validation peak",
        kept.step > 0 and not first,
        "no step helped on the validation problems, so the updated model is the base model"
        if kept.step == 0
        else f"validation is best at step {kept.step} of {metrics[-1].step}",
        {"best_step": kept.step, "validated": validated},
        "the steps are too long to see where accuracy is best; lower update.learning_rate, for example to a third, or "
        "validate more often (update.validate_every)",
    )


def margins_move(before: Tensor, after: Tensor) -> Finding:
    """Whether the margin of pivots that were not trained on grew: the sign of a skill that is there to amplify.

    before, after: margins (P,) of the validation pivots in logits, base and updated model. The interval is Student's.
    """
    change = (after - before).double()
    n = len(change)
    if n < 2:
        return _too_few(n)
    mean, error = float(change.mean()), float(change.std() / n**0.5)
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1)) * error
    preferred = [float((m > 0).float().mean()) for m in (before, after)]
    return _finding(
        "held-out margins",
        mean - half > 0,
        f"the margin of {n} held-out pivots changed by {mean:+.3f} logits ({mean - half:+.3f} to {mean + half:+.3f}), "
        f"preference accuracy {preferred[0]:.0%} -> {preferred[1]:.0%}",
        {"n": n, "change": mean, "ci95": [mean - half, mean + half], "preference_accuracy": preferred},
        "what was learned from the training pivots does not carry over to others: there may be no latent skill to "
        "amplify, in which case nothing that cca does will help; or the steps were too small (update.learning_rate)",
    )


def margins_tried(metrics: Sequence[Metric], count: int) -> Finding:
    """The same where no step was kept: the means over `count` held-out pivots at the steps that were tried."""
    if count < 2:
        return _too_few(count)
    first, tried = metrics[0], metrics[1:]
    low, high = min(m.margin for m in tried), max(m.margin for m in tried)
    preferred = [first.preference_accuracy, max(m.preference_accuracy for m in tried)]
    return _finding(
        "held-out margins",
        False,
        f"no step was kept; over those tried the mean margin of {count} held-out pivots went from {first.margin:.3f} "
        f"to between {low:.3f} and {high:.3f} logits, preference accuracy {preferred[0]:.0%} -> at most "
        f"{preferred[1]:.0%}",
        {"n": count, "before": first.margin, "tried": [m.margin for m in tried], "preference_accuracy": preferred},
        "if it hardly moved, what was learned does not carry over to other pivots: there may be no latent skill to "
        "amplify, in which case nothing that cca does will help; if it rose, the steps were too long: lower "
        "update.learning_rate",
    )


def _too_few(pivots: int) -> Finding:
    return Finding("held-out margins", True, f"{pivots} held-out pivots are too few to say", {"n": pivots}, "")


def loss_against_accuracy(metrics: Sequence[Metric], loss: str) -> Finding:
    """Whether the training loss fell while validation accuracy fell. loss: which one, as `update.loss`."""
    losses = [m.loss for m in metrics if m.loss is not None]
    change = metrics[-1].accuracy - metrics[0].accuracy
    falls = len(losses) > 1 and losses[-1] < losses[0] and change < 0
    return _finding(
        "loss against accuracy",
        not falls,
        f"from the first to the last step validation accuracy changed by {change * 100:+.1f} points"
        + (f", the loss from {losses[0]:.3f} to {losses[-1]:.3f}" if losses else ""),
        {"accuracy_change": change, "losses": losses},
        "the loss falls at the price of something else: the kept step is before that, but fewer or shorter steps "
        "would see the peak better; lower update.learning_rate"
        + (", or choose update.loss=logistic" if loss == "linear" else ""),
    )


def batch_size_matters(changed: Sequence[str], looked_at: int) -> Finding:
    """Greedy answers that differ when a problem is answered alone."""
    return _finding(
        "batch size",
        not changed,
        f"{len(changed)} of {looked_at} greedy answers change when they are generated alone",
        {"changed": list(changed), "looked_at": looked_at},
        "rounding decides some tokens: accuracies hold for this batch size; model.dtype=float32 or attention=eager are "
        "more exact",
    )
