"""Questions and a grader of one's own: a task where the last number is not what counts.

python examples/own_grader.py
"""

import re

import cca


def names_the_unit(text: str, gold: str) -> bool:
    """Right where the answer after #### is the gold one, whatever stands around it."""
    found = re.search(r"####\s*(-?\d+)", text)
    return found is not None and found[1] == gold


questions = [
    {
        "question": f"Tom has {a} marbles. He buys {b} bags with {c} marbles each. How many marbles does he have now?",
        "answer": str(a + b * c),
        "solution": f"He buys {b} * {c} = {b * c} marbles.\nNow he has {a} + {b * c} = {a + b * c} marbles.\n"
        f"#### {a + b * c}",
    }
    for a in range(3, 9)
    for b in range(2, 4)
    for c in (2, 3, 5)
]
model = cca.open_model("bundled", grader=names_the_unit)
problems = cca.load_problems(questions)
traces = cca.trace(model, problems, samples=4)
print(traces)
for pair in list(traces)[:3]:
    print(f"{pair.problem}: {'right' if pair.greedy.correct else 'wrong'}: {pair.greedy.text.strip()!r}")
