"""What `tests/fuzz.py` has read: each kind of file that a stranger could have made, valid ones, and its reader."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Target:
    """seeds: valid inputs. read: reads an input, which is the file called `name` in a folder."""

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], Any]


# ---- what is read ----


@cache
def small_model() -> Any:
    from families import family_model

    return family_model("llama")


def _tensors(write: Callable[[Path], Any]) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "x")
        return [(Path(folder) / "x").read_bytes()]


def _deltas() -> list[bytes]:
    from test_delta import made

    return _tensors(made(small_model()).save)


@cache
def _patched() -> tuple[Any, bytes]:
    """A model that a delta was applied to, and what is kept beside it."""
    import copy

    from test_delta import made

    from cca.model.applied import apply

    model = copy.deepcopy(small_model())
    (kept,) = _tensors(lambda path: apply(model, made(small_model()), "d")[0].save(path))
    return model, kept


def _read_applied(path: Path) -> None:
    import copy

    from cca.model.applied import Applied

    Applied.load(path).take_out(copy.deepcopy(_patched()[0]), str(path))


def _read_delta(path: Path) -> None:
    from cca.model.delta import Delta

    with Delta.load(path, small_model()).active(small_model()):
        pass


def _read_intervention(path: Path) -> None:
    from cca.controls.load import load_intervention

    load_intervention(path)


def _lora() -> list[bytes]:
    import torch

    from cca.controls.lora import LowRank
    from cca.model.components import find_components

    parts = find_components(small_model())
    rows = parts.rows(torch.ones(parts.size, dtype=torch.bool))
    return _tensors(LowRank.fresh(small_model(), rows, 2, 1.0, 0).save) + _deltas()


def _circuit() -> list[bytes]:
    import numpy as np
    from safetensors.numpy import save

    tensors = {
        "gates": np.linspace(0, 1, 10, dtype=np.float32), "history": np.ones((2, 10), np.float32),
        "losses": np.ones(3, np.float32), "sizes": np.array([[1, 1, 1, 2], [1, 1, 1, 2]]),
    }  # fmt: skip
    return [save(tensors)]


def _read_circuit(path: Path) -> None:
    from cca.show.circuit import CircuitView

    list(CircuitView.load(path).components())


def _rows(path: Path) -> None:
    from cca.problems.files import read_rows

    read_rows(path)


def _parquet() -> list[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"question": f"{n} + {n}?", "answer": float(2 * n), "template": "t"} for n in range(20)]
    return _tensors(lambda path: parquet.write_table(pa.Table.from_pylist(rows), path))


def _template(path: Path) -> None:
    from cca.errors import InputError
    from cca.problems.templates.annotated import check, read_templates

    for found in read_templates(path.parent).values():
        if isinstance(found, InputError):
            raise found
        check(found, n=2)


def _config(path: Path) -> None:
    from cca.run.config import load_config

    load_config(path)


def _examples(path: Path) -> None:
    from cca.problems.examples import load_examples
    from cca.problems.prompts import PromptOptions

    load_examples(PromptOptions(style="few-shot", shots=2, examples=str(path)))


def _records(kind: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        from cca import records
        from cca.io import read_records

        list(read_records(path, getattr(records, kind)))

    return read


def _manifest(path: Path) -> None:
    from cca.run.run import Run

    Run.load(path.parent)


def _gguf_file(path: Path) -> None:
    from cca.model.checks import check_model, load_tokenizer

    check_model(str(path))
    load_tokenizer(str(path))


def _gguf() -> list[bytes]:
    from gguf_made import gguf_model, write_gguf

    return _tensors(lambda path: write_gguf(path, gguf_model("llama")))


def _model_config(path: Path) -> None:
    from cca.model.checks import check_model

    weights = path.parent / "model.safetensors"
    if not weights.exists():
        weights.write_bytes(_weights()[0])
    check_model(str(path.parent))


def _model_weights(path: Path) -> None:
    from cca.model.weights import weight_types

    weight_types([path])


@cache
def _saved() -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        small_model().save_pretrained(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def _weights() -> list[bytes]:
    return [_saved()["model.safetensors"]]


JSONL = b'{"question": "2 + 3?", "answer": 5, "solution": "2 + 3 = 5\\n#### 5", "template": "sum", "split": "train"}\n'
TRACE = (
    b'{"problem":"0-0","split":"train","template":"0","prompt":[1,2],"greedy":{"tokens":[3,0],"text":" 5","answer":"5",'
    b'"correct":true,"cut":false},"sampled":null,"drawn":10,"reason":"no_opposite"}\n'
)
PIVOT = b'{"prefix":[1,2,3],"desired":4,"undesired":5,"problem":"0-0","split":"train","template":"0","method":"own"}\n'


def _texts(*texts: bytes) -> Callable[[], list[bytes]]:
    return lambda: list(texts)


TARGETS = {
    target.name: target
    for target in (
        Target("problems.jsonl", _texts(JSONL * 3), _rows),
        Target("problems.csv", _texts(b'question,answer,split\n"2 + 3, then?",5,train\n"1 + 1?",2,test\n'), _rows),
        Target("problems.json", _texts(b"[" + JSONL.strip() + b"," + JSONL.strip() + b"]"), _rows),
        Target("problems.parquet", _parquet, _rows),
        Target(
            "template.json",
            lambda: [f.read_bytes() for f in sorted((ROOT / "examples" / "one_step").iterdir())],
            _template,
        ),
        Target("config.toml", lambda: [f.read_bytes() for f in sorted((ROOT / "configs").iterdir())], _config),
        Target("examples.jsonl", lambda: [(ROOT / "examples" / "worked_examples.jsonl").read_bytes()], _examples),
        Target("traces.jsonl", _texts(TRACE * 2), _records("TracePair")),
        Target("pivots.jsonl", _texts(PIVOT * 2), _records("Pivot")),
        Target(
            "manifest.json",
            _texts(b'{"stages": {"trace": {"traces.jsonl": "0"}}, "format": 3, "config": "seed = 1"}'),
            _manifest,
        ),
        Target("delta.safetensors", _deltas, _read_delta),
        Target("applied-1.safetensors", lambda: [_patched()[1]], _read_applied),
        Target("intervention.safetensors", _lora, _read_intervention),
        Target("circuit.safetensors", _circuit, _read_circuit),
        Target("model.safetensors", _weights, _model_weights),
        Target("config.json", lambda: [_saved()["config.json"]], _model_config),
        Target("model.gguf", _gguf, _gguf_file),
    )
}
