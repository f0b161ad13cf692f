"""A grader of one's own: an answer counts only where every number that it claims to have computed is right.

python examples/own_grader.py
"""

import re

import cca


def every_step_holds(text: str, gold: str) -> bool:
    """Right where the final answer is the gold one and each ``a + b = c`` before it holds."""
    steps = re.findall(r"(\d+) ?([-+*]) ?(\d+) ?= ?(\d+)", text)
    results = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    sound = all(results[sign](int(a), int(b)) == int(c) for a, sign, b, c in steps)
    return sound and text.rpartition("####")[2].strip() == gold


model = cca.open_model("bundled", grader=every_step_holds)
problems = cca.load_problems("gsm-symbolic", templates=[58, 62], n=20, max_number=60)
traces = cca.trace(model, problems, samples=4)
print(traces)
for pair in list(traces)[:3]:
    print(f"{pair.problem}: {'right' if pair.greedy.correct else 'wrong'}: {pair.greedy.text.strip()!r}")
