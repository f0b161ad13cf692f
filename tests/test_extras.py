"""What is missing is named with a command that installs it, wherever this package came from."""

import importlib.util
import re
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from cca.errors import DISTRIBUTION, InputError, install_command

ROOT = Path(__file__).parent.parent


def of_extra(extra: str) -> list[Requirement]:
    wanted = map(Requirement, requires(DISTRIBUTION) or ())
    return [r for r in wanted if r.marker and r.marker.evaluate({"extra": extra})]


EXTRAS = [e for e in metadata(DISTRIBUTION).get_all("Provides-Extra") or () if e not in ("dev", "docs")]
"""Those that a user may need: the others are of the make commands."""


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_packages_of_every_extra_are_named_in_the_versions_that_it_asks_for(extra):
    wanted = of_extra(extra)
    assert wanted
    python, *command = shlex.split(install_command(*(r.name for r in wanted)))
    assert python == sys.executable
    assert command[:3] == ["-m", "pip", "install"]
    for said, asked in zip(map(Requirement, command[3:]), wanted, strict=True):
        assert (said.name, said.specifier) == (asked.name, asked.specifier)
        if extra != "vllm":  # which has an environment of its own: make vllm
            assert said.specifier.contains(version(said.name)), "what is installed here is what is asked for"


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = importlib.util.find_spec
    find = lambda name, *more: None if name in names else real(name, *more)
    for where in ("importlib.util", "cca.problems.examples", "cca.evaluation.harness.run"):
        monkeypatch.setattr(f"{where}.find_spec", find)
    for name in list(sys.modules):
        if name.partition(".")[0] in names:
            monkeypatch.setitem(sys.modules, name, None)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def a_table(folder: Path) -> None:
    from cca.problems.load import load_problems

    (folder / "rows.parquet").write_bytes(b"PAR1")
    load_problems(folder / "rows.parquet")


def a_benchmark(folder: Path) -> None:
    from cca.evaluation.harness.run import check_tasks

    check_tasks(["mmlu"])


def examples(folder: Path) -> None:
    from cca.problems.examples import load_examples
    from cca.problems.prompts import PromptOptions

    load_examples(PromptOptions(style="few-shot", shots=2, examples="lm-eval:gsm8k_cot"))


def fine_tuning(folder: Path) -> None:
    from cca.controls.fine_tuning import check_installed

    check_installed()


def frames(folder: Path) -> None:
    from cca.folder import RunFolder
    from cca.show.frames import Frames

    assert Frames(RunFolder(folder, {"stages": {}}), lambda: pytest.fail("no tokenizer is needed")).problems is not None


def a_gguf_file(folder: Path) -> None:
    from cca.model.checks import check_model

    (folder / "m.gguf").write_bytes(b"GGUF")
    check_model(str(folder / "m.gguf"))


def an_engine(**options: Any) -> Callable[[Path], None]:
    def ask(folder: Path) -> None:
        from cca.model.engines.choice import check_engine
        from cca.model.options import EngineOptions, ModelOptions

        check_engine(EngineOptions(**options), ModelOptions())

    return ask


MESSAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a table": (a_table, ("pyarrow",)),
    "a benchmark": (a_benchmark, ("lm_eval",)),
    "examples": (examples, ("lm_eval",)),
    "fine-tuning": (fine_tuning, ("trl", "peft")),
    "frames": (frames, ("pandas",)),
    "a GGUF file": (a_gguf_file, ("gguf",)),
    "Ray": (an_engine(workers=2), ("ray",)),
    "vLLM": (an_engine(name="vllm"), ("vllm",)),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_message_about_a_missing_package_ends_in_the_command_that_installs_it(case, tmp_path, monkeypatch):
    ask, modules = MESSAGES[case]
    absent(monkeypatch, *modules)
    with pytest.raises(InputError) as found:
        ask(tmp_path)
    said = str(found.value)
    assert said.endswith(install_command(*(m.replace("_", "-") for m in modules)))
    assert DISTRIBUTION not in said


def test_a_file_that_is_not_there_is_named_before_what_would_read_it(tmp_path, monkeypatch):
    from cca.model.checks import check_model

    absent(monkeypatch, "gguf")
    with pytest.raises(InputError, match=r"there is no file .*none\.gguf"):
        check_model(str(tmp_path / "none.gguf"))


def test_every_package_of_an_extra_has_a_message():
    covered = {module.replace("_", "-") for _, modules in MESSAGES.values() for module in modules}
    assert covered == {r.name for extra in EXTRAS for r in of_extra(extra)}


def test_nothing_asks_for_a_package_that_is_on_no_index():
    for path in (*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"):
        assert not re.search(rf"install[^\n]*{DISTRIBUTION}", path.read_text(encoding="utf-8")), path


def test_without_an_installed_distribution_the_names_are_said(monkeypatch):
    def none(_: str) -> list[str]:
        raise PackageNotFoundError

    monkeypatch.setattr("importlib.metadata.requires", none)
    assert install_command("pyarrow").endswith("-m pip install pyarrow")
