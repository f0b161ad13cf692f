"""Stage 2 of a run: its circuit, at one lambda or at the lambda that gives a wanted density."""

from collections.abc import Callable

from cca.errors import NothingToLearnError
from cca.method.circuit import Circuit, Progress, Work, learn_gates, own_pivots, read_prefixes
from cca.method.density import SPARSE, best_trial, is_near, missed, next_penalty
from cca.method.prefixes import CachedPrefixes
from cca.method.processes import Processes
from cca.model.placement import Placement
from cca.records import Trial
from cca.run.run import Run

PARTIAL = "circuit.partial.safetensors"


def work(run: Run) -> None:
    """Write circuit.safetensors, and sweep.jsonl with one line a lambda that was tried.

    Raises:
        InputError: the steps are too few for any gate to fall, or (NothingToLearnError) the circuit is empty.
    """
    options, trials = run.config.circuit, run.folder.recover("sweep.jsonl", Trial)
    gates = _Gates(run)
    options.check_reach(len(gates.pivots))
    while (penalty := next_penalty(trials, options.penalty, options.target_density)) is not None:
        trials.append(Trial(penalty, _tried(run, penalty, gates).density))
        run.folder.append("sweep.jsonl", trials[-1:])
    wanted = options.target_density
    best = best_trial(trials, wanted)
    if best.density == 0:
        run.folder.delete(("circuit-*.safetensors", "sweep.jsonl"))
        raise NothingToLearnError(
            f"lambda {best.penalty:g} leaves an empty circuit; lower it, and what was found before is kept: "
            f"cca circuit {run.folder.path} --redo --set circuit.lambda={best.penalty / 2:g}"
        )
    if wanted is not None and not is_near(best.density, wanted):
        run.warn("circuit", missed(trials, wanted))
    elif best.density > SPARSE and wanted is None:
        run.warn(
            "circuit",
            f"lambda {best.penalty:g} gives a density of {best.density:.2%}, over the paper's 2%; a sparser circuit "
            f"needs a higher one: --set circuit.lambda={best.penalty * 1.5 or 0.01:g}, or circuit.target_density=0.016",
        )
    _tried(run, best.penalty, gates).save(run.folder.file("circuit.safetensors"))
    run.folder.manifest["lambda"] = best.penalty


def helper(run: Run, processes: Processes) -> Callable[[float], None]:
    """What another process than the first does at each lambda."""
    gates = _Gates(run)

    def learn(penalty: float) -> None:
        gates.read(processes)
        gates.learn(penalty, processes)

    return learn


class _Gates:
    """The gates of a run, at any lambda. The prefixes are read once for all, where one is still to be tried."""

    def __init__(self, run: Run):
        self.run, self.pivots = run, run.pivots_of("train")
        self.prefixes: CachedPrefixes | None = None

    def read(self, processes: Processes) -> None:
        """Read the prefixes of this one of `processes`, where that was not done."""
        if self.prefixes is None:
            tokens = sum(len(self.pivots[number].prefix) - 1 for number in own_pivots(self.pivots, processes))
            with self.run.display.reading("prefixes", tokens) as told:
                network = self.run.model.network
                self.prefixes = read_prefixes(network, self.pivots, self.run.config.circuit, told, processes)
            if self.prefixes and processes.first:
                self._say(self.prefixes.placement)

    def _say(self, where: Placement) -> None:
        self.run.folder.note("prefixes", "circuit", str(where))
        self.run.display.figure("prefixes", where.where)
        if where.where == "chunks":
            self.run.warn("circuit", f"{where}, which takes longer; raise circuit.cache_gib where there is more")

    def learn(
        self, penalty: float, processes: Processes, progress: Progress | None = None, work: Work | None = None
    ) -> Circuit:
        run = self.run
        return learn_gates(
            run.model.network,
            run.model.components,
            self.pivots,
            run.config.circuit,
            penalty=penalty,
            seed=run.config.seed,
            state_path=run.folder.file(PARTIAL),
            prefixes=self.prefixes,
            processes=processes,
            progress=progress,
            work=work,
        )


def _tried(run: Run, penalty: float, gates: _Gates) -> Circuit:
    """The circuit at one lambda, learned where it has not been."""
    name = f"circuit-{penalty!r}.safetensors"
    if not run.folder.file(name).exists():
        _learn(run, penalty, gates).save(run.folder.file(name))
    run.folder.file(PARTIAL).unlink(missing_ok=True)  # before the next lambda, which would go on from it
    return run.folder.artifact(name, Circuit.load)


def _learn(run: Run, penalty: float, gates: _Gates) -> Circuit:
    with run.together("circuit", penalty) as processes:
        gates.read(processes)
        with run.display.bar("circuit", run.config.circuit.epochs, "epochs", at_most=True) as bar:
            bar.figure("lambda", f"{penalty:g}")

            def work(tokens: int, epochs: float) -> None:
                if tokens:
                    bar.work(tokens, epochs - bar.done)
                else:
                    bar.resume(int(epochs))

            def report(epoch: int, density: float, loss: float) -> None:
                bar.reach(epoch)
                bar.figure("density", f"{density:.2%}")
                bar.figure("target loss", f"{loss:.3f}")
                run.track("circuit", epoch=epoch, density=density, loss=loss, penalty=penalty)

            return gates.learn(penalty, processes, report, work)
