"""The arms of a comparison: what each trains, in words and as changes of the config. Nothing here needs torch."""

from typing import Literal, NamedTuple

Arm = Literal["circuit", "random", "all", "gradient", "bias", "steering", "lora-pivots", "lora", "finetune"]
"""What a run trains."""
OF_ROWS = ("circuit", "random", "all", "gradient")
"""Those that change rows of weights, which can be merged, and trained in several rounds."""


class ComparedArm(NamedTuple):
    """An arm of `cca compare`.

    settings: how its config departs from the compared one. needs: stages of a run that it could not do without.
    shares: stages whose outcome it has in common with the Branching arm.
    """

    title: str
    settings: tuple[str, ...]
    needs: tuple[str, ...] = ("trace", "pivots")
    shares: tuple[str, ...] = ("trace", "pivots", "circuit")


WITH_CIRCUIT = ("trace", "pivots", "circuit")
ARMS: dict[str, ComparedArm] = {
    "branching": ComparedArm("circuit's rows, Branching method", (), WITH_CIRCUIT, ()),
    "prefix": ComparedArm(
        "circuit's rows, Prefix method", ('pivots.method="prefix"',), WITH_CIRCUIT, ("trace", "pivots")
    ),
    "random": ComparedArm(
        "random rows, as many of each kind", ('update.arm="random"', "update.learning_rate=0.4"), WITH_CIRCUIT
    ),
    "all": ComparedArm("all rows, no mask", ('update.arm="all"',)),
    "gradient": ComparedArm("as many rows, of the largest gradient", ('update.arm="gradient"',), WITH_CIRCUIT),
    "bias": ComparedArm("constant bias on the output logits", ('update.arm="bias"', "update.learning_rate=1.0")),
    "steering": ComparedArm(
        "vector added to the last layer's output", ('update.arm="steering"', "update.learning_rate=3000.0")
    ),
    "lora-pivots": ComparedArm("LoRA on the pivot loss", ('update.arm="lora-pivots"', "update.learning_rate=0.003")),
    "lora": ComparedArm("LoRA on correct solutions", ('update.arm="lora"', "update.learning_rate=0.0001"), ()),
    "finetune": ComparedArm(
        "full fine-tuning on correct solutions", ('update.arm="finetune"', "update.learning_rate=0.00001"), ()
    ),
}
"""By name, in the order in which they run; each is compared with the base model."""
