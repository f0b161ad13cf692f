"""Early stopping: which measured step of a training is the best, and whether it is worth going on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cca.model.intervention import Intervention
from cca.records import Metric, best_of

P = TypeVar("P", bound=Intervention)


@dataclass(frozen=True)
class Training(Generic[P]):
    """The kept intervention, the step it comes from and every measured step. `best_step` 0: no step helped.

    rate: what a learning rate of ``auto`` came to; None where it was given.
    """

    intervention: P
    best_step: int
    metrics: list[Metric]
    stopped: str
    rate: float | None = None


class Course(Generic[P]):
    """The measured steps so far, and what the best of them held. Ties go to the earlier step."""

    def __init__(self, patience: int, best: P, metrics: Sequence[Metric] = ()):
        """patience: measurements without a new best after which training stops."""
        self.patience, self.best, self.metrics = patience, best, list(metrics)

    def record(self, metric: Metric, held: Callable[[], P]) -> None:
        """A measured step; `held` gives what was measured, to be kept where it is the best."""
        if not self.metrics or metric.accuracy > max(m.accuracy for m in self.metrics):
            self.best = held()
        self.metrics.append(metric)

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` measurements were no better than the best."""
        return len(self.metrics) - 1 - self.metrics.index(best_of(self.metrics)) >= self.patience

    def result(self, stopped: str, rate: float | None = None) -> Training[P]:
        return Training(self.best, best_of(self.metrics).step, self.metrics, stopped, rate)
