"""What is pushed arrives on the hub as it was written; without a hub the folder stays and is named."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hub_standin import TOKEN, Hub, hub_standin
from huggingface_hub import DatasetCard, ModelCard

from cca import cli

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's client's


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_standin() as found:
        yield found


@pytest.fixture
def run(mended, tmp_path) -> Path:
    return Path(shutil.copytree(mended, tmp_path / "run"))


class Done(NamedTuple):
    returncode: int
    stderr: str


@pytest.fixture
def push(monkeypatch, capsys) -> Callable[..., Done]:
    """`cca push` with the hub at an address."""

    def pushed(hub: Hub | str, run: Path, *more: str, token: str = TOKEN) -> Done:
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.ENDPOINT", hub if isinstance(hub, str) else hub.url)
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", token)
        return Done(cli.main(["push", str(run), *more]), capsys.readouterr().err)

    return pushed


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize(
    ("what", "kind", "more"),
    [
        ("adapter", "model", ["--base", "someone/organism"]),
        ("model", "model", ["--private"]),
        ("dataset", "dataset", []),
    ],
)
def test_all_that_was_written_arrives_in_a_repository_of_its_kind(what, kind, more, push, hub, run):
    done = push(hub, run, "someone/patched", "--what", what, *more)
    assert done.returncode == 0, done.stderr
    folder = run / "push" / what
    assert hub.files[kind, "someone/patched"] == files(folder)
    assert hub.private[kind, "someone/patched"] == ("--private" in more)
    where = f"{hub.url}/{'datasets/' if kind == 'dataset' else ''}someone/patched"
    assert f"pushed {folder} to {where}" in done.stderr
    assert "POST /api/validate-yaml" in hub.requests, "the hub has seen the card's metadata"
    assert b"someone/patched" in hub.files[kind, "someone/patched"]["README.md"], "it says how it is loaded from there"
    (DatasetCard if kind == "dataset" else ModelCard).load(folder / "README.md").data.to_dict()


def test_a_second_push_replaces_what_the_first_wrote(push, hub, run):
    for rank in ("8", "4"):
        done = push(hub, run, "someone/patched", "--base", "someone/organism", "--max-rank", rank)
        assert done.returncode == 0, done.stderr
    assert json.loads(hub.files["model", "someone/patched"]["adapter_config.json"])["r"] == 4


def test_who_is_not_known_is_told_how_to_log_in_before_anything_is_written(push, hub, run):
    before = files(run)
    done = push(hub, run, "someone/patched", "--base", "someone/organism", token="hf_other")
    assert done.returncode == 2
    assert "log in with: hf auth login, or only write the folder with --offline" in done.stderr
    assert hub.files == {} and files(run) == before


def test_a_hub_that_refuses_leaves_the_folder_and_says_where_it_is(push, hub, run):
    hub.refuses = True
    done = push(hub, run, "someone/patched", "--base", "someone/organism")
    assert done.returncode == 2
    folder = run / "push" / "adapter"
    assert "cannot push to someone/patched (" in done.stderr and f"what would be pushed is in {folder}" in done.stderr
    assert (folder / "adapter_config.json").exists()


def test_without_a_connection_the_folder_is_written_and_the_way_to_upload_it_is_said(push, run):
    done = push("http://127.0.0.1:9", run, "someone/set", "--what", "dataset")
    assert done.returncode == 0
    folder = run / "push" / "dataset"
    assert "nothing was pushed (http://127.0.0.1:9 does not answer" in done.stderr
    assert f"hf upload someone/set {folder} --repo-type dataset" in done.stderr
    assert (folder / "README.md").exists()


def test_offline_nothing_is_asked_of_the_hub(push, hub, run):
    done = push(hub, run, "someone/patched", "--base", "someone/organism", "--offline")
    assert done.returncode == 0 and "nothing was pushed (--offline)" in done.stderr
    assert hub.requests == []


@pytest.mark.parametrize(
    ("what", "option"),
    [("dataset", ["--max-rank", "4"]), ("model", ["--base", "a/b"]), ("adapter", ["--dtype", "float16"])],
)
def test_an_option_that_would_not_be_heeded_is_refused(what, option, run, capsys):
    assert cli.main(["push", str(run), "someone/x", "--what", what, *option]) == 2
    assert f"{option[0]} is for --what" in capsys.readouterr().err
    assert not (run / "push").exists()


def test_a_hub_that_cannot_answer_is_no_reason_to_log_in(push, hub, run):
    hub.fails = True
    done = push(hub, run, "someone/set", "--what", "dataset")
    assert done.returncode == 0 and f"nothing was pushed ({hub.url} cannot answer" in done.stderr


@pytest.mark.parametrize("name", ["patched", "a/b/c", "some one/patched", "someone/", "../run"])
def test_a_name_that_no_repository_has_is_refused(name, run, capsys):
    assert cli.main(["push", str(run), name, "--what", "dataset"]) == 2
    assert "is no name of a repository" in capsys.readouterr().err


def test_an_adapter_of_a_base_that_nobody_else_has_is_refused(run, capsys):
    assert cli.main(["push", str(run), "someone/patched"]) == 2
    assert "nobody else has bundled; say which model of the hub that is with --base" in capsys.readouterr().err
