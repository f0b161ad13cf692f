"""Stage 2 of a run: its circuit, at one lambda or at the lambda that gives a wanted density."""

from collections.abc import Callable, Sequence
from functools import cache

from cca.errors import NothingToLearnError
from cca.method.circuit import Circuit, learn_gates, read_prefixes
from cca.method.density import SPARSE, best_trial, is_near, missed, next_penalty
from cca.method.prefixes import CachedPrefixes
from cca.records import Pivot, Trial
from cca.run.run import Run

PARTIAL = "circuit.partial.safetensors"


def work(run: Run) -> None:
    """Write circuit.safetensors, and sweep.jsonl with one line a lambda that was tried.

    Raises:
        InputError: the steps are too few for any gate to fall, or (NothingToLearnError) the circuit is empty.
    """
    options, trials = run.config.circuit, run.folder.recover("sweep.jsonl", Trial)
    pivots = run.pivots_of("train")
    options.check_reach(len(pivots))
    prefixes = cache(lambda: _read(run, pivots))  # once for all lambdas, where one is still to be tried
    while (penalty := next_penalty(trials, options.penalty, options.target_density)) is not None:
        trials.append(Trial(penalty, _tried(run, penalty, pivots, prefixes).density))
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
    _tried(run, best.penalty, pivots, prefixes).save(run.folder.file("circuit.safetensors"))
    run.folder.manifest["lambda"] = best.penalty


def _read(run: Run, pivots: Sequence[Pivot]) -> CachedPrefixes:
    network = run.model.network
    with run.display.reading("prefixes", sum(len(p.prefix) - 1 for p in pivots)) as read:
        prefixes = read_prefixes(network, pivots, run.config.circuit, read)
    run.folder.note("prefixes", "circuit", str(prefixes.placement))
    if prefixes.placement.where == "chunks":
        run.warn("circuit", f"{prefixes.placement}, which takes longer; raise circuit.cache_gib where there is more")
    return prefixes


def _tried(run: Run, penalty: float, pivots: Sequence[Pivot], prefixes: Callable[[], CachedPrefixes]) -> Circuit:
    """The circuit at one lambda, learned where it has not been."""
    name = f"circuit-{penalty!r}.safetensors"
    if not run.folder.file(name).exists():
        _learn(run, penalty, pivots, prefixes()).save(run.folder.file(name))
    run.folder.file(PARTIAL).unlink(missing_ok=True)  # before the next lambda, which would go on from it
    return run.folder.artifact(name, Circuit.load)


def _learn(run: Run, penalty: float, pivots: Sequence[Pivot], prefixes: CachedPrefixes) -> Circuit:
    options = run.config.circuit
    with run.display.bar("circuit", options.epochs, "epochs", at_most=True) as bar:
        bar.figure("lambda", f"{penalty:g}")
        bar.figure("prefixes", prefixes.placement.where)

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

        return learn_gates(
            run.model.network,
            run.model.components,
            pivots,
            options,
            penalty=penalty,
            seed=run.config.seed,
            state_path=run.folder.file(PARTIAL),
            prefixes=prefixes,
            progress=report,
            work=work,
        )
