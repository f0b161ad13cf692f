"""Write what a run trained as an adapter in PEFT's format."""

from pathlib import Path
from typing import Any

from cca.controls.load import load_intervention
from cca.controls.lora import LowRank
from cca.controls.methods import OF_ROWS
from cca.errors import InputError
from cca.io import write_text
from cca.model.adapter import Adapter, Pair, adapter_of, keeps_columns
from cca.model.bundled import location
from cca.model.checkpoint import README, check_new, made_whole
from cca.model.checks import check_model
from cca.model.delta import Delta
from cca.model.open import generation_settings
from cca.model.tokenizer_files import save_tokenizer
from cca.model.weights import empty_model
from cca.run.run import Run
from cca.run.share.card import adapter_card, is_hub_name, revision_of
from cca.run.share.merge import check_finished, reads_as

OF_LORA = ("lora", "lora-pivots")


def export_adapter(
    run: Run, out: Path, base: str | None = None, max_rank: int | None = None, called: str | None = None
) -> Adapter:
    """Write the update of `run` to the folder `out` as a LoRA adapter, with its tokenizer and a README.md.

    No weights of the model are read.

    Args:
        base: what others load the adapter on, such as a hub name; by default the run's model.
        max_rank: lower larger ranks to this; `Adapter.error` says what is lost.
        called: what its README.md loads it as; by default the folder that it is in.

    Raises:
        InputError: `out` exists or cannot be written, the run has no finished update, or trained what no adapter holds.
    """
    check_finished(run, f"cca export {{}} {out} --format peft", (*OF_ROWS, *OF_LORA))
    check_new(out)
    options = run.config.model
    config = check_model(options.path, trust_remote_code=options.trust_remote_code, weights=False)
    network = empty_model(config, options.path, trust_remote_code=options.trust_remote_code)
    change = load_intervention(run.folder.final_delta())
    if isinstance(change, LowRank):
        adapter, components = of_lora(change, network), ()
    elif isinstance(change, Delta):
        adapter, components = adapter_of(change, network), change.components
    else:
        raise InputError(f"{run.folder.final_delta()} is not what its config says; put it back")
    if max_rank and adapter.rank > max_rank:
        adapter = adapter.lowered(max_rank)
    base = base or location(options.path)
    if Path(base).exists():
        base = str(Path(base).resolve())
    with made_whole(out) as temporary:
        adapter.save(temporary, base, revision_of(run) if is_hub_name(base) and base == options.path else None)
        save_tokenizer(run.prompter.tokenizer, temporary, reads_as(run), trust_remote_code=options.trust_remote_code)
        card = adapter_card(run, adapter, components, base, generation_settings(options.path), called)
        write_text(temporary / README, card)
    return adapter


def of_lora(trained: LowRank, network: Any) -> Adapter:
    """LoRA that `cca.controls.lora` trained, its scale in B."""
    pairs = {
        name.rpartition(".")[0]: Pair(down, trained.up[name] * trained.scale) for name, down in trained.down.items()
    }
    return Adapter(pairs, keeps_columns(network, pairs))
