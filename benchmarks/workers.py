"""Two Ray workers against one, each of one thread: greedy answers of the bundled model.

Processes are started and their models loaded before the clock runs. They take turns, and what they write is compared.
"""

import time
from collections.abc import Iterator
from importlib.util import find_spec

from lines import Line, Setting, part
from work import bundled, problems

from cca.evaluation.scores import answer
from cca.model.engine import Engine
from cca.model.engines.replicated import Replicated
from cca.model.options import EngineOptions, ModelOptions
from cca.records import Score

BAR = 1.6
LIMIT, SLOTS = 160, 64


def lines(setting: Setting) -> Iterator[Line]:
    if find_spec("ray") is None:
        yield Line("two Ray workers against one", note="skipped: Ray is not installed ([ray])")
        return
    prompter = bundled().prompter
    asked = problems(8, 2) if setting.quick else problems(40, 16)
    engines = [Replicated(EngineOptions(workers=count), ModelOptions(device="cpu")) for count in (1, 2)]
    times: list[list[float]] = [[], []]

    def written(engine: Engine) -> list[Score]:
        return answer(engine, prompter, asked, model="base", max_new_tokens=LIMIT, slots=SLOTS)

    try:
        first, second = (written(engine) for engine in engines)
        assert first == second, "two workers write otherwise than one"
        for _ in range(1 if setting.quick else 3):
            for engine, taken in zip(engines, times, strict=True):
                began = time.perf_counter()
                written(engine)
                taken.append(time.perf_counter() - began)
    finally:
        for engine in engines:
            engine.close()
    one, two = map(min, times)
    spread = max(max(taken) / min(taken) - 1 for taken in times)
    bar = None if setting.quick else BAR
    # two threads cannot do in less than half the time what one does in all of it
    yield Line(f"two Ray workers against one, {len(asked)} answers", two, one, one / 2, bar=bar, spread=spread)


if __name__ == "__main__":
    part(__doc__, lines)
