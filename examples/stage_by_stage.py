"""The whole method, stage by stage, on a few templates of GSM-Symbolic: half a minute on two cores.

python examples/stage_by_stage.py
"""

import tempfile
from pathlib import Path

import cca

model = cca.open_model("bundled")
problems = cca.load_problems("gsm-symbolic", templates=[57, 58, 62], n=30, max_number=60)
traces = cca.trace(model, problems)  # training and validation problems
print(traces)
pivots = cca.find_pivots(model, traces)
print(f"{len(pivots)} pivots, the first after {model.tokenizer.decode(pivots[0].prefix[-8:])!r}")
circuit = cca.learn_circuit(model, pivots, learning_rate=0.02, epochs=25)
print(circuit)
delta = cca.update(model, circuit, pivots, validate=problems, steps=10)
print(delta)
print(cca.evaluate(model, problems, delta))  # test problems

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "delta.safetensors"
    delta.save(file)
    cca.Delta.load(file, model).merge(model)  # for good
