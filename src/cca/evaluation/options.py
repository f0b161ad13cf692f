"""What can be set of the evaluation, with its default."""

from pathlib import Path
from typing import NamedTuple

from cca.method.options import TraceOptions
from cca.options import Count, CountOrNone, Options


class Limit(NamedTuple):
    """How many tokens an answer may have, and the setting that says so."""

    tokens: int
    setting: str


class EvaluationOptions(Options):
    """What base and updated model are compared on."""

    transfer: tuple[str, ...] = ("chain_sum", "simple_equations", "leg_counting")
    """Skills of reasoning-gym that neighbour the target and could gain or lose with it."""
    retention: tuple[str, ...] = ("rotate_matrix", "manipulate_matrix")
    """Skills of reasoning-gym that must not move."""
    tasks: tuple[str, ...] = ()
    """Benchmarks of lm-evaluation-harness that must not move, such as ``mmlu``, ``triviaqa``, ``truthfulqa_mc2``."""
    task_data: str = ""
    """Folder of local files for them (layout: `cca.evaluation.harness.files`); without one they come from the hub."""
    task_limit: CountOrNone = 0
    """Documents of each subtask, from its first. 0: all."""
    task_shots: CountOrNone | None = None
    """Worked examples in place of the task's own number."""
    per_skill: CountOrNone = 200
    """Problems a skill."""
    batch: Count = 128
    """Problems answered together."""
    max_new_tokens: Count | None = None
    """Tokens an answer of the base or the updated model may have, in the validation of stage 3 too. Not set: as many as
    a trace, ``traces.max_new_tokens``. The paper's runs have 2,500 for traces and 1,500 for answers."""
    drift_problems: Count = 100
    """Problems a set whose solutions measure drift, at most."""
    text: tuple[str, ...] = ()
    """Files of plain text on which drift is measured too, such as an article a file."""

    @property
    def task_folder(self) -> Path | None:
        """`task_data` as a path; None where the benchmarks come from the hub."""
        return Path(self.task_data) if self.task_data else None

    def answer_limit(self, traces: TraceOptions) -> Limit:
        """Of answers; by default that of traces."""
        if self.max_new_tokens is None:
            return Limit(traces.max_new_tokens, "traces.max_new_tokens")
        return Limit(self.max_new_tokens, "evaluation.max_new_tokens")
