"""Push what a run found to the hub: adapter, model or data set, with its card."""

import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cca.errors import InputError
from cca.model.weights import first_line, quiet
from cca.run.run import Run
from cca.run.share.adapter import export_adapter
from cca.run.share.card import is_hub_name
from cca.run.share.datasets import export_datasets
from cca.run.share.merge import merge

What = Literal["adapter", "model", "dataset"]


class Pushed(NamedTuple):
    """folder: what was written; url: where it is on the hub, or why it is not."""

    folder: Path
    url: str | None
    reason: str = ""


def push(
    run: Run,
    name: str,
    what: What = "adapter",
    *,
    private: bool = False,
    offline: bool = False,
    base: str | None = None,
    max_rank: int | None = None,
    dtype: str | None = None,
) -> Pushed:
    """Write `what` to the folder push of the run, and upload that to the hub's repository `name` (user/name).

    Args:
        private: of a repository that is made here.
        offline: only write the folder. Without a connection that is all that is done, too.
        base, max_rank: as of `export_adapter`. dtype: as of `merge`.

    Raises:
        InputError: the name is none, nobody is logged in or may write there, the run has nothing of the kind, or an
            adapter's base is on this machine alone.
    """
    known = base or run.config.model.path
    if what == "adapter" and not is_hub_name(known):
        raise InputError(
            f"an adapter names its base, and nobody else has {known}; say which model of the hub that is with --base, "
            "or push the whole model with --what model"
        )
    api, reason = _logged_in(name, offline)
    folder = run.folder.file("push") / what
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier push
    if what == "adapter":
        export_adapter(run, folder, base, max_rank, called=name)
    elif what == "model":
        merge(run, folder, dtype, called=name)
    else:
        export_datasets(run, folder, called=name)
    if api is None:
        return Pushed(folder, None, reason)
    kind = "dataset" if what == "dataset" else "model"
    try:
        with quiet():
            api.create_repo(name, repo_type=kind, private=private or None, exist_ok=True)
            done = api.upload_folder(
                repo_id=name, repo_type=kind, folder_path=folder, commit_message=f"Upload the {what} of a cca run"
            )
    except Exception as error:  # the hub's own, or of the connection
        why = "; ".join(first_line(e) for e in (error, error.__cause__) if e)
        raise InputError(
            f"cannot push to {name} ({why}); what would be pushed is in {folder}, the same command tries again"
        ) from error
    return Pushed(folder, str(done.repo_url))


def _logged_in(name: str, offline: bool) -> tuple[Any, str]:
    """The hub's interface, seen to answer and to know who asks; None, and why, where there is no connection."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{name!r} is no name of a repository ({first_line(error)}); give user/name") from error
    if name.count("/") != 1:
        raise InputError(f"{name!r} is no name of a repository; give user/name")
    if offline:
        return None, "--offline"
    if is_offline_mode():
        return None, "HF_HUB_OFFLINE is set"
    api = HfApi()
    try:
        with quiet():
            api.whoami()
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code not in (401, 403):
            return None, f"{api.endpoint} cannot answer: {first_line(error)}"
        raise InputError(
            f"the hub does not know you ({first_line(error)}); log in with: hf auth login, or only write the folder "
            "with --offline"
        ) from error
    except Exception as error:  # of the connection, from the library that the hub's client uses
        return None, f"{api.endpoint} does not answer: {first_line(error)}"
    return api, ""
