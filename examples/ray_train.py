"""A circuit and an update in two workers of Ray Train, in the group of processes that it makes for them.

pip install "ray[train]", then: python examples/ray_train.py
"""

from pathlib import Path

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, get_device


def work(settings: dict) -> None:
    """What each worker does; all get the same circuit and delta."""
    import cca

    processes = cca.Processes.of_group()
    model = cca.open_model("bundled", device=str(get_device()))
    problems = cca.load_problems("gsm-symbolic", templates=settings["templates"], n=30, max_number=60)
    # the first finds the pivots, for all: on GPUs each might find others
    found = cca.find_pivots(model, cca.trace(model, problems)) if processes.first else None
    pivots = processes.same(found)
    circuit = cca.learn_circuit(model, pivots, learning_rate=0.02, epochs=25, processes=processes)
    delta = cca.update(model, circuit, pivots, validate=problems, steps=10, processes=processes)
    if processes.first:
        print(circuit, delta, sep="\n")
        delta.save(settings["out"])


if __name__ == "__main__":
    settings = {"templates": [57, 58, 62], "out": str(Path("delta.safetensors").resolve())}
    scaling = ScalingConfig(num_workers=2, use_gpu=False)  # True where there are GPUs
    TorchTrainer(work, train_loop_config=settings, scaling_config=scaling).fit()
