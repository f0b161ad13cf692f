"""Two Ray workers against one, each of one thread: greedy answers of the bundled model."""

from collections.abc import Iterator
from importlib.util import find_spec

from lines import Line, Setting, part

BAR = 1.6
ENGINE = "cca.model.engines.ray_engine"


def lines(setting: Setting) -> Iterator[Line]:
    del setting
    if find_spec("cca.model.engines") is None or find_spec(ENGINE) is None:
        yield Line("two workers against one", note=f"not built: there is no {ENGINE}")
        return
    raise NotImplementedError(f"{ENGINE} is there, and nothing here measures it yet")


if __name__ == "__main__":
    part(__doc__, lines)
