"""What can be set of each stage of the method, with its default. Nothing here loads torch."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cca.errors import InputError
from cca.method.rates import OF_ADAM, default_rate
from cca.options import Count, CountOrNone, Options, Positive, Share

Loss = Literal["linear", "logistic"]
PivotMethod = Literal["branching", "prefix", "probability"]
Trained = Literal["circuit", "random", "all", "gradient", "bias", "steering", "lora-pivots", "lora", "finetune"]
"""What an update changes: the method, and the controls that a comparison puts beside it."""

_TOO_MUCH = 100
"""Times the usual rate of Adam, whose steps are as long as the rate says: such a one unlearns the language."""


class TraceOptions(Options):
    """Stage 1a (paper section 3.1): how traces are drawn."""

    samples: Count = 10
    """Samples a problem gets at most until one is of opposite correctness."""
    temperature_if_correct: Positive = 1.2
    """Temperature where the greedy trace is correct (a wrong sample is wanted)."""
    temperature_if_wrong: Positive = 0.8
    """Temperature where the greedy trace is wrong (a correct sample is wanted)."""
    top_k: CountOrNone = 0
    """Samples draw from so many of the likeliest tokens, and those as likely as the last of them. 0: from all. The
    paper's runs draw from 50."""
    max_new_tokens: Count = 160
    """Tokens a trace may have."""
    batch: Count = 128
    """Traces that are written at once."""
    skip_solved: Share = 1.0
    """Leave out of training the templates whose training problems the base model solves in at least this share: 1.0
    those that it solves entirely, 0 none. The paper's runs leave out from 0.8 on."""


class PivotOptions(Options):
    """Stage 1b (paper section 3.1): where a pair of traces turns."""

    method: PivotMethod = "branching"
    """``branching``: where the greedy completion changes its outcome; ``prefix``: where the two traces part;
    ``probability``: where the success rate of sampled completions changes (needs ``confirm``)."""
    confirm: CountOrNone = 0
    """Completions sampled after each of a pivot's two tokens, to see whether the token decides. 0: none, and every
    pivot counts. The fewer, the more pivots pass by chance; 16 tell rates apart that differ by a half."""
    gap: Share = 0.2
    """A pivot counts where the success rate after the desired token is higher by at least this (arXiv 2412.08905)."""
    temperature: Positive = 1.0
    """Temperature of these completions, which are drawn as traces are (``traces.top_k``)."""

    def sampled(self, limit: int) -> int:
        """Completions that are sampled for one pivot, at most, where a trace has up to `limit` tokens."""
        # halving begins with one, and both sides of the last deviation are new to it
        places = 3 + math.ceil(math.log2(limit)) if self.method == "probability" else 2
        return places * self.confirm

    def check(self, where: str = "") -> None:
        """See that the options go together.

        Raises:
            InputError: they do not. Its message begins with `where` they stand.
        """
        if self.method == "probability" and not self.confirm:
            raise InputError(
                f"{where}pivots.method is probability, which compares sampled completions, and pivots.confirm is 0; "
                "set pivots.confirm, for example to 16"
            )


class CircuitOptions(Options):
    """Stage 2 (paper section 3.2): how gates are learned."""

    penalty: Annotated[float, Field(ge=0, alias="lambda")] = 0.05
    """``lambda``: the price of a component. Higher gives a sparser circuit."""
    target_density: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Search for the lambda that gives this density, within a tenth of it, starting from ``lambda``. The paper's
    circuits are at about 0.016."""
    learning_rate: Positive = 5e-3
    """Adam's."""
    decay: Share = 0.9
    """Factor on the learning rate ..."""
    decay_every: Count = 5
    """... every so many epochs."""
    batch: Count = 8
    """Pivots a step."""
    epochs: Count = 50
    """At most."""
    min_steps: CountOrNone = 12
    """Steps that an epoch has at least: few pivots are passed over several times an epoch, since in a pass of a step or
    two the rate decays before any gate can fall. 0: one pass, whatever comes of it."""
    patience: Positive = 1.0
    """Stop when the rounded circuit has not changed for this many epochs. The paper's 0.2 is of far longer epochs."""
    cache_gib: Positive | None = None
    """GiB of the device that keys and values of all prefixes may take. Where they are more, main memory keeps them, and
    where they are more than half of what is free there, each step reads its own again. Not set: half of what the device
    has free when the stage begins."""

    def passes(self, pivots: int) -> int:
        """How often an epoch passes over so many pivots."""
        return max(1, math.ceil(self.min_steps / math.ceil(pivots / self.batch)))

    def steps(self, pivots: int) -> int:
        """Steps of an epoch with so many pivots."""
        return self.passes(pivots) * math.ceil(pivots / self.batch)

    def reach(self, pivots: int) -> float:
        """How far a gate can move in a whole training, at about the learning rate in each of Adam's steps."""
        return self._reach_of_a_step() * self.steps(pivots)

    def _reach_of_a_step(self) -> float:
        """Of one step in each epoch."""
        return self.learning_rate * sum(self.decay ** (epoch // self.decay_every) for epoch in range(self.epochs))

    def check_reach(self, pivots: int) -> None:
        """See that gates can fall below one half in training on so many pivots.

        Raises:
            InputError: they cannot, so that every lambda would leave the whole model.
        """
        if (reach := self.reach(pivots)) < 0.5:
            raise InputError(
                f"no gate could leave the circuit: it must fall by 0.5, and in {self.epochs} epochs of "
                f"{self.steps(pivots)} steps ({pivots} pivots, circuit.batch {self.batch}) at a learning rate of "
                f"{self.learning_rate:g} a gate moves by about {reach:.2g} in all; set circuit.min_steps to "
                f"{math.ceil(2 / self._reach_of_a_step())}, or raise circuit.epochs or circuit.learning_rate"
            )


class UpdateOptions(Options):
    """Stage 3 (paper section 3.3): how rows, or a control in their place, are trained."""

    method: Annotated[Trained, Field(alias="arm")] = "circuit"
    """What is trained on the pivots: the ``circuit``'s rows; as controls, rows of a ``random`` circuit of the same
    counts per kind, ``all`` rows, as many rows of the largest ``gradient``, a ``bias`` on the output logits, a
    ``steering`` vector on the last layer's output, ``lora-pivots``; or, on correct solutions, ``lora`` or ``finetune``
    (all weights). In a config file its name is ``arm``."""
    loss: Loss = "logistic"
    """Of a pivot's margin: ``linear`` is the paper's; ``logistic`` lets go of a pivot as the desired token wins."""
    learning_rate: Positive | Literal["auto"] = Field(default_factory=lambda data: default_rate(data.get("method", "")))
    """Step size of plain gradient descent. ``auto``: such that the first step would lower the loss by a half, were it
    as steep all the way (0.5 / the gradient's squared norm). In the methods ``lora-pivots``, ``lora`` and ``finetune``
    of Adam, which has no ``auto``. Not set: in a run of the bundled model 0.2; else ``auto``, and of Adam 0.003, 0.0001
    and 0.00001."""
    steps: Count = 20
    """At most."""
    validate_every: Count = 2
    """Validation at these steps ..."""
    validate_at: tuple[int, ...] = ()
    """... and at these."""
    patience: Count = 4
    """Stop after this many validations without a new best."""
    batch: Count = 32
    """Pivots a forward and backward pass, at most; fewer where they are of many tokens. The gradient is always that of
    all pivots."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: for long prompts, a third more time for far less memory."""
    lora_rank: Count = 8
    """Of the methods ``lora`` and ``lora-pivots``, whose matrices are those whose rows components own."""
    lora_alpha: Positive = 16
    """Their change is scaled by alpha / rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of what goes into their adapters that is left out in training, drawn anew for each token and pass."""
    solution_batch: Count = 8
    """Solutions a step of the methods ``lora`` and ``finetune``; their ``steps`` are epochs, for a step of the others
    is a pass over all pivots as well."""

    @model_validator(mode="after")
    def _has_a_rate(self) -> "UpdateOptions":
        usual = OF_ADAM.get(self.method)
        if usual is None:
            return self
        if self.learning_rate == "auto":
            raise ValueError(f"learning_rate auto is for gradient descent, and {self.method} has Adam; give a number")
        if self.learning_rate >= _TOO_MUCH * usual:
            raise ValueError(
                f"learning_rate {self.learning_rate:g} is one of gradient descent; {self.method} has Adam, whose "
                f"are far smaller: {usual:g} is a start"
            )
        return self

    def validated(self, step: int) -> bool:
        """Whether validation is due after `step`."""
        return step == self.steps or step % self.validate_every == 0 or step in self.validate_at

    def validations(self) -> int:
        """How many validations a whole update has at most, that of the unchanged model included."""
        return 1 + sum(self.validated(step) for step in range(1, self.steps + 1))
