"""The method's known failure modes: what a run shows of each, and what to do about it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from torch import Tensor

from cca.evaluation.pivot_kinds import CARRIERS, Between, Kind, counted, says
from cca.evaluation.results import Finding, SetResult
from cca.method.density import SPARSE, is_near
from cca.method.traces import CUT_SHARE, share_cut
from cca.records import Metric, Pivot, Score, TracePair, WithoutPivot

STYLE_SHARE = 0.25
"""More pivots than this on punctuation, or on the first token, are a warning."""
LEAST_CARRIERS = 0.1
"""Where answers are numbers, fewer pivots than this on numbers, operators or the end are a warning."""
LEAST_YIELD = 0.1
MOSTLY_CONFIRMED = 0.5
UNDECIDED = (0.4, 0.6)
FEW_PIVOTS, FEW_VALIDATED = 25, 30
"""Fewer than these are said to be few."""
NO_ANSWER_SHARE = 0.05
NO_ROOM = 0.02
"""Base accuracy this near to 0 or 1 leaves nothing to gain, or nothing to gain it from."""
LENGTHENED = 0.2
"""A change of the mean length of answers that is said to be one of style."""
MOSTLY_CUT = 0.25
"""A share of cut texts from which on they are the first thing to mend."""
FAINT = 0.1
"""A mean margin that changes by less, in logits, hardly moved."""


def _finding(check: str, fine: bool, message: str, figures: dict[str, Any], advice: str) -> Finding:
    return Finding(check, fine, message, figures, "" if fine else advice)


def pivots_by_kind(turns: Sequence[Between], golds: Sequence[str], confirmed: bool = False) -> Finding:
    """Where traces turn: most pivots on how an answer is written say little of how it is reasoned.

    A first token with which the answer itself begins, as a letter that is chosen, is none of style. That words alone
    turn is a warning only where most golds are numbers: of other tasks words may be the answer.

    Args:
        turns: what the pivots choose between.
        golds: the answers of the training problems.
        confirmed: sampled completions show that the tokens decide, so that no turn at a word is chance.
    """
    counts = counted([turn.kind for turn in turns])
    openings = sum(turn.kind == "first token" and not turn.answers for turn in turns)
    carriers = sum(turn.answers or turn.kind in CARRIERS for turn in turns)
    numbers = sum(says(gold) == "digit" for gold in golds) > len(golds) / 2
    largest = next(iter(counts))
    common = [
        f"{good!r} not {bad!r}"
        for (good, bad), _ in Counter((t.desired, t.undesired) for t in turns if t.kind == largest).most_common(5)
    ]
    few = numbers and not confirmed and carriers < LEAST_CARRIERS * len(turns)
    style: dict[Kind, bool] = {
        "first token": openings > STYLE_SHARE * len(turns),
        "punctuation": counts["punctuation"] > STYLE_SHARE * len(turns),
        "word": few and counts["word"] > STYLE_SHARE * len(turns),
    }
    advice = "; ".join(_OF_KIND[kind] for kind, much in style.items() if much)
    return _finding(
        "pivots by kind",
        not advice,
        f"{len(turns)} pivots: {', '.join(f'{count} {kind}' for kind, count in counts.items())}; "
        f"of the kind {largest}, for example {'; '.join(common[:3])}",
        {"counts": counts, "answers": sum(turn.answers for turn in turns), "numbers": numbers, "examples": common},
        f"look at them with cca show pivots RUN --kind {next(k for k, much in style.items() if much)!r}; {advice}"
        if advice
        else "",
    )


_OF_KIND: dict[Kind, str] = {
    "first token": "at the first token style is still open: settle it before, by prompt.prefill (how the answer "
    "begins), worked examples, or a prompt.template that asks for one form",
    "punctuation": "if those on punctuation are noise, the sampled traces differ in style rather than in method: lower "
    "the temperatures, or try the other pivots.method",
    "word": "a greedy continuation is chaotic, so a turn at a word may be chance: set pivots.confirm=8, which counts a "
    "pivot only where sampled completions after both tokens differ in success",
}


def confirmed(pivots: Sequence[Pivot], samples: int, gap: float) -> Finding:
    """How many of the pivots that were found sampled completions confirm, and how many of these by chance.

    Where the two tokens make no difference the success rates differ as often either way, so about as many are
    confirmed by chance as lie as far the other way; or fewer, since one of these may have turned by chance greedily.
    """
    counting = sum(p.counts(gap) for p in pivots)
    other_way = sum(p.lies_the_other_way(gap) for p in pivots)
    return _finding(
        "confirmed pivots",
        counting >= MOSTLY_CONFIRMED * len(pivots),
        f"at {counting} of {len(pivots)} pivots the success rate of {samples} sampled completions is higher after the "
        f"desired token by {gap:g} or more; the others were not learned from. At {other_way} it is lower by as much: "
        f"about as many of the {counting} are chance",
        {"found": len(pivots), "confirmed": counting, "other_way": other_way, "samples": samples, "gap": gap},
        "most turns are chance: the greedy completion is right or wrong whatever the token; settle the form of answers "
        "(prompt.prefill, worked examples), trace more problems so that enough pivots are left, or find them by "
        "pivots.method=probability",
    )


def pivot_yield(pairs: Sequence[TracePair], left_out: Sequence[WithoutPivot], found: int) -> Finding:
    """How many traced problems gave a pivot, and why the others gave none."""
    share = found / len(pairs)
    reasons = dict(Counter(record.reason for record in left_out))
    said = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items()) or "none left out"
    greedy = sum(pair.greedy.correct for pair in pairs) / len(pairs)
    mostly_solved = 2 * reasons.get("template_solved", 0) > len(left_out)
    return _finding(
        "pivot yield",
        share >= LEAST_YIELD,
        f"{found} of {len(pairs)} problems gave a pivot ({said}); {greedy:.0%} of the greedy traces are right",
        {"share": share, "without": reasons, "greedy_accuracy": greedy},
        "most problems without one are of templates left out as solved: set traces.skip_solved=0, which leaves none "
        "out, or choose harder problems"
        if mostly_solved
        else "few problems are both solved and missed by sampling: the model has little latent skill here, or too "
        "little is sampled; raise traces.samples or the temperatures, or choose harder or easier problems",
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


def sample_sizes(pivots: int, validation: int) -> Finding:
    """Whether there is enough to learn from and to choose a step by."""
    few = pivots < FEW_PIVOTS, validation < FEW_VALIDATED
    said = [
        f"a circuit of {pivots} pivots fits what is peculiar to them: raise problems.train or traces.samples",
        f"one of {validation} validation problems is {1 / max(1, validation):.0%} of accuracy, so chance has a large "
        "part in which step is kept: raise problems.validation",
    ]
    return _finding(
        "sample sizes",
        not any(few),
        f"{pivots} pivots to train on, {validation} validation problems to choose the step",
        {"pivots": pivots, "validation": validation},
        "; ".join(text for text, small in zip(said, few, strict=True) if small),
    )


def _of_each_model(answers: Sequence[Score]) -> tuple[list[Score], list[Score]]:
    return [a for a in answers if a.model == "base"], [a for a in answers if a.model == "updated"]


def unfinished(
    pairs: Sequence[TracePair], answers: Sequence[Score], limit: int, answer_limit: int | None = None
) -> Finding:
    """Texts that the limit of tokens ended, among the traces and each model's answers to the target.

    answer_limit: of answers, where they have one of their own.
    """
    of_traces = share_cut(trace for pair in pairs for trace in pair.by_kind().values())
    base, updated = map(share_cut, _of_each_model(answers))
    shares = {"traces": of_traces, "answers to the target": max(base, updated)}
    limits = {"limit": limit} if answer_limit is None else {"limit": limit, "answer_limit": answer_limit}
    traced = f"{of_traces:.1%} of the traces"
    answered = f"{base:.1%} of the base and {updated:.1%} of the updated model's answers to the target"
    if answer_limit is None:
        told = f"{traced} and {answered} were cut at traces.max_new_tokens = {limit}"
    else:
        told = f"{traced} were cut at traces.max_new_tokens = {limit}, and {answered} at evaluation.max_new_tokens = "
        told += str(answer_limit)
    figures: dict[str, Any] = {**limits, **shares, "base": base, "updated": updated}
    return _finding(
        "cut answers",
        max(shares.values()) < CUT_SHARE,
        told,
        figures,
        f"raise {_limits_to_raise(figures, CUT_SHARE)}: what is cut counts as wrong unless the right answer came "
        "before, so what is learned and measured is in part the limit",
    )


def _limits_to_raise(cut: Mapping[str, Any], share: float) -> str:
    """The settings that ended at least such a share of texts, by the figures of `unfinished`."""
    of_answers = "evaluation.max_new_tokens" if "answer_limit" in cut else "traces.max_new_tokens"
    found = {"traces.max_new_tokens": cut["traces"] >= share}
    found[of_answers] = found.get(of_answers, False) or cut["answers to the target"] >= share
    return " and ".join(name for name, much in found.items() if much)


def after_cut(finding: Finding, cut: Finding) -> Finding:
    """`finding`, whose advice waits where so many texts were cut that it may be about the limit alone."""
    if finding.fine or max(cut.figures["traces"], cut.figures["answers to the target"]) < MOSTLY_CUT:
        return finding
    first = _limits_to_raise(cut.figures, MOSTLY_CUT)
    return replace(finding, advice=f"first raise {first}: this may come of the cut answers alone")


def answer_lengths(answers: Sequence[Score]) -> Finding:
    """How long each model's answers to the target are: an update that changes that changes how they are written."""
    base, updated = (fmean(a.tokens for a in of_model) for of_model in _of_each_model(answers))
    change = updated / base - 1 if base else 0.0
    return _finding(
        "length of answers",
        abs(change) <= LENGTHENED,
        f"answers to the target have {base:.0f} tokens on average, and {updated:.0f} after the update ({change:+.0%})",
        {"base": base, "updated": updated},
        "the update changes how answers are written, so that part of what it gains or loses may be style and not "
        "skill: see with cca show problem what they are like, try a prompt under which the base model writes as much "
        "(prompt.template, prompt.shots), and leave evaluation.max_new_tokens room for the longer ones",
    )


def no_answer(answers: Sequence[Score], grader: str) -> Finding:
    """Finished answers to the target in which the grader found none."""
    share = sum(score.verdict == "no answer" for score in answers) / len(answers)
    return _finding(
        "answers without an answer",
        share <= NO_ANSWER_SHARE,
        f"in {share:.1%} of the answers to the target the grader ({grader}) found none",
        {"share": share},
        "look at some with cca show problem; ask for the form that the grader reads (prompt.template, worked "
        "examples), or choose another problems.grader",
    )


def room(target: SetResult) -> Finding:
    """Whether the base model has something to gain on the target, and something to gain it from."""
    solved, unable = target.base > 1 - NO_ROOM, target.base < NO_ROOM
    return _finding(
        "base accuracy",
        not (solved or unable),
        f"the base model answers {target.base:.1%} of {target.n} target problems right",
        {"base": target.base, "n": target.n},
        "hardly anything is left to gain: choose harder problems"
        if solved
        else "the model has next to no latent skill here, or is not understood: look at some answers with cca show "
        "problem and check prompt and grader; then choose easier problems or another model",
    )


def validation_course(metrics: Sequence[Metric], kept: Metric, steps: int, held_out: int) -> Finding:
    """How validation went over the steps that were measured.

    steps: those that the update could make at most. held_out: the pivots that margins are means over.
    """
    first, tried = metrics[0], metrics[1:]
    changes = [m.accuracy - first.accuracy for m in tried]
    moved = max((abs(m.margin - first.margin) for m in tried), default=0.0)
    step, last = kept.step, metrics[-1].step
    flat = all(abs(change) * first.n < 1.5 for change in changes) and moved < FAINT
    rate = "update.learning_rate"
    if flat:
        said = "hardly anything moved: of the validation answers one at most"
        said += f", of the held-out margin {moved:.3f} logits" if held_out else "; no pivot was held out to look at"
        advice = f"the steps are too short: raise {rate}, for example tenfold"
    elif step == 0:
        said = "no step helped on the validation problems, so the updated model is the base model"
        if min(changes) < 0:
            said += f"; accuracy fell by up to {-min(changes) * 100:.1f} points"
            advice = f"if the held-out margin rose all the same, the steps are too long: lower {rate}, say to a third"
        else:
            said += ", though the held-out margin moved"
            advice = "what the pivots teach does not decide the answers: look at them with cca show pivots"
    elif step == tried[0].step and len(tried) > 1:
        said = f"validation is best at the first step that was measured, {step} of {last}"
        advice = f"the peak may lie before it: lower {rate}, for example to a third, or validate more often "
        advice += "(update.validate_every)"
    else:
        said, advice = f"validation is best at step {step} of {last}", ""
        if step == last == steps and len(tried) > 1:
            said += ", the last"
            advice = f"it may still be rising: raise update.steps, or {rate}"
    figures = {"best_step": step, "validated": [m.step for m in tried], "changes": changes, "margin_moved": moved}
    return _finding("validation course", not advice, said, figures, advice)


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
        _margin_advice(mean),
    )


def _margin_advice(change: float) -> str:
    """What a mean change of the held-out margin, in logits, that is not a clear rise asks for."""
    if change >= FAINT:
        return "it rose, by how much is uncertain: raise problems.validation for more held-out pivots"
    if change > -FAINT:
        return (
            "it hardly moved: the steps were too short (raise update.learning_rate), or what was learned does not "
            "carry over to other pivots, and then there may be no latent skill to amplify, and nothing here will help"
        )
    return (
        "it fell, so what was learned from the training pivots speaks against others: there may be no latent skill to "
        "amplify, or the pivots are noise (cca show pivots), or the steps were too long (lower update.learning_rate)"
    )


def margins_tried(metrics: Sequence[Metric], count: int) -> Finding:
    """The same where no step was kept: the means over `count` held-out pivots at the steps that were tried."""
    if count < 2:
        return _too_few(count)
    first, tried = metrics[0], metrics[1:]
    low, high = min(m.margin for m in tried), max(m.margin for m in tried)
    preferred = [first.preference_accuracy, max(m.preference_accuracy for m in tried)]
    farthest = max((m.margin - first.margin for m in tried), key=abs)
    return _finding(
        "held-out margins",
        False,
        f"no step was kept; over those tried the mean margin of {count} held-out pivots went from {first.margin:.3f} "
        f"to between {low:.3f} and {high:.3f} logits, preference accuracy {preferred[0]:.0%} -> at most "
        f"{preferred[1]:.0%}",
        {"n": count, "before": first.margin, "tried": [m.margin for m in tried], "preference_accuracy": preferred},
        "it rose while accuracy did not: the steps were too long (lower update.learning_rate), or the pivots do not "
        "decide the answers (cca show pivots)"
        if farthest >= FAINT
        else _margin_advice(farthest),
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
