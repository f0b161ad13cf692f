"""A circuit and an update from pivots of one's own, on a model that is already in memory.

python examples/own_pivots.py
"""

import cca

model = cca.open_model("bundled")  # or cca.open_model((hf_model, tokenizer))


def pivot(text: str, desired: str, undesired: str) -> cca.Pivot:
    """After `text` the model should go on with the first token of `desired` rather than of `undesired`."""
    first = [model.tokenizer.encode(word, add_special_tokens=False)[0] for word in (desired, undesired)]
    return cca.Pivot(model.tokenizer.encode(text), *first)


pivots = [
    pivot(f"Q: Ann has {a} apples and gives {b} to Bob. How many are left?\nA: {a}", " -", " +")
    for a in range(10, 18)
    for b in range(2, 6)
]
circuit = cca.learn_circuit(model, pivots, penalty=0.02, epochs=20)
print(circuit)
print(*circuit.components()[:5], sep="\n")

delta = cca.update(model, circuit, pivots, steps=5)  # without problems to validate on, the last step is kept
print(delta)
with delta.active(model):
    ids = model.tokenizer("Q: Ann has 20 apples and gives 7 to Bob. How many are left?\nA:", return_tensors="pt")
    written = model.network.generate(ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=24)
    print(model.tokenizer.decode(written[0], skip_special_tokens=True))
