"""The methods of a comparison: what each trains, in words and as changes of the config. Nothing here needs torch."""

from typing import Literal, NamedTuple

from cca.method.rates import OF_ADAM

OF_ROWS = ("circuit", "random", "all", "gradient")
"""What changes rows of weights, which can be merged, and trained in several rounds."""
OF_SOLUTIONS = ("lora", "finetune")
"""What learns worked solutions in place of pivots."""
_BY_DESCENT = ("random", "all", "gradient", "bias", "steering")
"""Controls that plain gradient descent trains, and not Adam."""


class ComparedMethod(NamedTuple):
    """A method of `cca compare`.

    settings: how its config departs from the compared one. rate: the learning rate that suits it on the bundled model;
    None where it is the circuit's. needs: stages of a run that it could not do without. shares: stages whose outcome it
    has in common with the branching method.
    """

    title: str
    settings: tuple[str, ...]
    rate: float | None = None
    needs: tuple[str, ...] = ("trace", "pivots")
    shares: tuple[str, ...] = ("trace", "pivots", "circuit")


WITH_CIRCUIT = ("trace", "pivots", "circuit")
METHODS: dict[str, ComparedMethod] = {
    "branching": ComparedMethod("circuit's rows, branching method", (), None, WITH_CIRCUIT, ()),
    "prefix": ComparedMethod(
        "circuit's rows, prefix method", ('pivots.method="prefix"',), None, WITH_CIRCUIT, ("trace", "pivots")
    ),
    "random": ComparedMethod("random rows, as many of each kind", ('update.arm="random"',), 0.4, WITH_CIRCUIT),
    "all": ComparedMethod("all rows, no mask", ('update.arm="all"',)),
    "gradient": ComparedMethod("as many rows, of the largest gradient", ('update.arm="gradient"',), None, WITH_CIRCUIT),
    "bias": ComparedMethod("constant bias on the output logits", ('update.arm="bias"',), 1.0),
    "steering": ComparedMethod("vector added to the last layer's output", ('update.arm="steering"',), 3000.0),
    "lora-pivots": ComparedMethod("LoRA on the pivot loss", ('update.arm="lora-pivots"',), OF_ADAM["lora-pivots"]),
    "lora": ComparedMethod("LoRA on correct solutions", ('update.arm="lora"',), OF_ADAM["lora"], ()),
    "finetune": ComparedMethod(
        "full fine-tuning on correct solutions", ('update.arm="finetune"',), OF_ADAM["finetune"], ()
    ),
}
"""By name, in the order in which they run; each is compared with the base model."""


def learning_rate(method: str, bundled: bool) -> float | Literal["auto"] | None:
    """What a method's learning rate is unless it is given; None for the config's, which is the circuit's.

    bundled: the model is the bundled one. A rate of gradient descent says nothing about another model, of which each
    method has gradients of another size; Adam's, of LoRA and fine-tuning, are much alike for all.
    """
    return "auto" if method in _BY_DESCENT and not bundled else METHODS[method].rate
