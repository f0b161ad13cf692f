"""Stage 2 of a run: its circuit, at one lambda or at the lambda that gives a wanted density."""

from cca.errors import NothingToLearnError
from cca.method.circuit import Circuit, learn_gates
from cca.method.density import SPARSE, best_trial, is_near, missed, next_penalty
from cca.records import Trial
from cca.run.run import Run

PARTIAL = "circuit.partial.safetensors"


def work(run: Run) -> None:
    """Write circuit.safetensors, and sweep.jsonl with one line a lambda that was tried.

    Raises:
        InputError: the steps are too few for any gate to fall, or (NothingToLearnError) the circuit is empty.
    """
    options, trials = run.config.circuit, run.folder.recover("sweep.jsonl", Trial)
    options.check_reach(len(run.pivots_of("train")))
    while (penalty := next_penalty(trials, options.penalty, options.target_density)) is not None:
        trials.append(Trial(penalty, _tried(run, penalty).density))
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
    _tried(run, best.penalty).save(run.folder.file("circuit.safetensors"))
    run.folder.manifest["lambda"] = best.penalty


def _tried(run: Run, penalty: float) -> Circuit:
    """The circuit at one lambda, learned where it has not been."""
    name = f"circuit-{penalty!r}.safetensors"
    if not run.folder.file(name).exists():
        _learn(run, penalty).save(run.folder.file(name))
    run.folder.file(PARTIAL).unlink(missing_ok=True)  # before the next lambda, which would go on from it
    return run.folder.artifact(name, Circuit.load)


def _learn(run: Run, penalty: float) -> Circuit:
    options = run.config.circuit
    with run.display.bar("circuit", options.epochs, "epochs") as bar:

        def report(epoch: int, density: float, loss: float) -> None:
            bar.reach(epoch)
            bar.figure("lambda", f"{penalty:g}")
            bar.figure("density", f"{density:.2%}")
            bar.figure("target loss", f"{loss:.3f}")

        return learn_gates(
            run.model.network,
            run.model.components,
            run.pivots_of("train"),
            options,
            penalty=penalty,
            seed=run.config.seed,
            state_path=run.folder.file(PARTIAL),
            progress=report,
        )
