"""A circuit and an update from pivots of one's own: here the model is known to add where it should multiply at the end.

python examples/own_pivots.py
"""

import cca

model = cca.open_model("bundled")  # or cca.open_model((hf_model, tokenizer))
problems = cca.load_problems("gsm-symbolic", templates=[58], n=60, max_number=60)


def pivot(text: str, desired: str, undesired: str) -> cca.Pivot:
    """After `text` the model should go on with the token `desired` rather than `undesired`."""
    both = [model.tokenizer.encode(word, add_special_tokens=False)[0] for word in (desired, undesired)]
    return cca.Pivot(model.tokenizer.encode(text), *both)


pivots = []
for problem in problems:
    before, times, _ = problem.solution.rpartition("*")
    if problem.split == "train" and times:
        pivots.append(pivot(f"Q: {problem.question}\nA: {before}", "*", "+"))

circuit = cca.learn_circuit(model, pivots, learning_rate=0.05, epochs=20)
print(circuit)
print(*circuit.components()[:5], sep="\n")
delta = cca.update(model, circuit, pivots, validate=problems, steps=10)
print(delta)
print(cca.evaluate(model, problems, delta))
