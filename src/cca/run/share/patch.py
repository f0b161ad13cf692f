"""Apply deltas to the files of a model, one after another, and take them out again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from cca.errors import InputError
from cca.model.applied import Applied, applied_files, apply, put_beside, take_from_beside
from cca.model.checkpoint import (
    SHARD,
    Checkpoint,
    check_new,
    made_whole,
    open_checkpoint,
    save_checkpoint,
)
from cca.model.delta import Delta, Rounding
from cca.model.weights import some
from cca.run.run import Run
from cca.run.share.card import applied_card, metrics_of, shown_name
from cca.run.share.merge import check_finished


class Patched(NamedTuple):
    """What became of the deltas: by name, what rounding did to each; and the type of the weights that hold them."""

    rounding: dict[str, Rounding]
    dtype: str


def load_delta(source: Path) -> Delta:
    """The delta in a file, or that of a finished run.

    Raises:
        InputError: there is none.
    """
    if not source.is_dir():
        return Delta.load(source)
    if (source / "adapter_config.json").exists():
        raise InputError(f"{source} is a PEFT adapter; load it with peft, or name the delta or the run that it is of")
    return delta_of(Run.load(source))


def delta_of(run: Run) -> Delta:
    """What a finished run comes to, with its figures where it has them.

    Raises:
        InputError: it is not finished, or trained no rows.
    """
    check_finished(run, "cca apply MODEL {} OUT")
    found = Delta.load(run.folder.final_delta())
    return replace(found, metrics=metrics_of(run.summary)) if run.folder.finished("evaluate") else found


def apply_to(
    model: str,
    deltas: Sequence[Path],
    out: Path,
    *,
    dtype: str | None = None,
    add: bool = False,
    shard: str = SHARD,
    trust_remote_code: bool = False,
) -> Patched:
    """Write `model` with `deltas` applied to the folder `out`, which appears whole or not at all.

    Everything but the weights stays as it was, to the letter; the folder also keeps what `revert` needs.

    Args:
        deltas: files or run folders. Each is for the model itself, or for what those before it make of it.
        dtype: of the weights; by default that of the model's files.
        add: where two of them that know nothing of each other change the same rows, add both.
        shard: largest size of a file of weights.

    Raises:
        InputError: `out` exists or cannot be written, a delta is for another model, or two change the same rows.
    """
    check_new(out)
    loaded = {str(path): load_delta(path) for path in deltas}
    if len(loaded) < len(deltas):
        raise InputError("a delta is named twice; name it once")
    base = open_checkpoint(model, dtype, trust_remote_code=trust_remote_code)
    kept, rounding = _apply_all(base, loaded, add)
    with made_whole(out) as temporary:
        save_checkpoint(base, temporary, shard=shard, trust_remote_code=trust_remote_code)
        for applied, (name, delta) in zip(kept, loaded.items(), strict=True):
            put_beside(temporary, applied, applied_card(model, name, delta, rounding[name], base.type))
    return Patched(rounding, base.type)


def _apply_all(base: Checkpoint, deltas: Mapping[str, Delta], add: bool) -> tuple[list[Applied], dict[str, Rounding]]:
    fit = {name: _fits(base, delta, name) for name, delta in deltas.items()}
    kept: list[Applied] = []
    rounding: dict[str, Rounding] = {}
    before: dict[str, Delta] = {}
    for name, delta in deltas.items():
        if fit[name] is None and not add:
            _check_apart(before, delta, name)
        elif fit[name] is not None and (said := _fits(base, delta, name)):
            after = f" (nor does it fit what {' and '.join(before)} made of it)" if before else ""
            raise InputError(f"{said}{after}")
        applied, rounding[name] = apply(base, delta, shown_name(name))
        kept.append(applied)
        before[name] = delta
    return kept, rounding


def _fits(base: Checkpoint, delta: Delta, name: str) -> str | None:
    """Why a delta is not for the model as it is now; None where it is."""
    try:
        delta.check_fits(base, name)
    except InputError as error:
        return str(error)
    return None


def _check_apart(before: Mapping[str, Delta], delta: Delta, name: str) -> None:
    """See that a delta, which was learned on the base, changes no row that an earlier one has changed.

    Raises:
        InputError: it does; the message names both and the weights.
    """
    for other, earlier in before.items():
        shared = {
            weight: int(torch.isin(rows.index.cpu(), earlier.weights[weight].index.cpu()).sum())
            for weight, rows in delta.weights.items()
            if weight in earlier.weights
        }
        if count := sum(shared.values()):
            where = some([f"{weight} ({n})" for weight, n in shared.items() if n])
            raise InputError(
                f"{other} and {name} both change {count} rows, of {where}. Each was learned without the other, and "
                "what both do together was not measured: leave one out, learn one on a model that has the other, or "
                "add them: --add"
            )


def revert(
    model: Path, out: Path, *, every: bool = False, shard: str = SHARD, trust_remote_code: bool = False
) -> list[str]:
    """Write the folder `model` without the delta that was applied to it last to `out`; its rows are what they were.

    Args:
        every: take out all that were applied.

    Returns:
        The names of those that were taken out.

    Raises:
        InputError: nothing was applied to it, something else changed the rows since, or `out` exists or cannot be
            written.
    """
    check_new(out)
    files = applied_files(model) if model.is_dir() else []
    if not files:
        raise InputError(
            f"{model} does not say what was applied to it (it has no folder cca as cca merge and cca apply leave); "
            "take the base model itself"
        )
    taken = files[::-1] if every else files[-1:]
    found = {file: Applied.load(file) for file in taken}
    checkpoint = open_checkpoint(str(model), trust_remote_code=trust_remote_code)
    for file, applied in found.items():
        applied.take_out(checkpoint, str(file))
    with made_whole(out) as temporary:
        save_checkpoint(checkpoint, temporary, shard=shard, trust_remote_code=trust_remote_code)
        for _ in taken:
            take_from_beside(temporary)
    return [applied.name for applied in found.values()]


def export_delta(run: Run, out: Path, base: str | None = None) -> Delta:
    """Write the delta of `run` with its figures to the file `out`.

    Args:
        base: what others have the base model as; by default the run's.

    Raises:
        InputError: `out` exists or cannot be written, or the run has no finished update of rows.
    """
    delta = delta_of(run)
    check_new(out)
    if base and delta.base:
        delta = replace(delta, base=replace(delta.base, name=base))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        delta.save(out)
    except OSError as error:
        raise InputError(f"cannot write {out} ({error}); name a file in a folder where there is room") from error
    return delta
