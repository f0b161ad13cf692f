"""Made-up rows of benchmarks, in the hub datasets' own layout."""

import json
from pathlib import Path

SUBJECTS = ("anatomy", "astronomy", "high_school_physics")


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def choice(first: int, second: int, subject: str) -> dict:
    options = [str(first + second + k) for k in range(4)]
    question = f" How many is {first} and {second}? "
    return {"question": question, "subject": subject, "choices": options, "answer": (first * second) % 4}


def trivia(question: str, *aliases: str) -> dict:
    return {"question": question, "question_id": question, "answer": {"aliases": list(aliases), "value": aliases[0]}}


def multiple(question: str, labels: tuple[int, ...]) -> dict:
    options = {"choices": [f"It is {n}." for n in range(len(labels))], "labels": list(labels)}
    return {"question": question, "mc1_targets": options, "mc2_targets": options}


TRUTHS = [multiple("How many is it", (1, 0, 1)), multiple("How many are there now", (0, 0, 0, 1))]


def solved(answer: int) -> dict:
    return {"question": f"Tom has {answer} eggs. How many has he?", "answer": f"He has {answer}.\n#### {answer}"}


def boxed(answer: int) -> dict:
    row = {"problem": f"What is $1+{answer - 1}$?", "level": "Level 1", "type": "Algebra"}
    return row | {"solution": f"It is $\\boxed{{{answer}}}$."}


def datasets(folder: Path) -> Path:
    """Rows of five datasets, in `folder`."""
    for i, subject in enumerate(SUBJECTS):
        place = folder / "cais" / "mmlu" / subject  # by the dataset's whole name
        write(place / "test-00000-of-00002.parquet", [choice(a, i + 2, subject) for a in range(2)])
        write(place / "test-00001-of-00002.parquet", [choice(a, i + 5, subject) for a in range(2)])
        write(place / "dev-00000-of-00001.parquet", [choice(a, i + 3, subject) for a in range(5)])
    questions = [trivia("Which number follows 7", "7", "seven"), trivia("What colour is the sky", "blue", "Azure")]
    write(folder / "trivia_qa" / "rc.nocontext" / "validation-00000-of-00001.parquet", questions)
    write(folder / "truthful_qa" / "multiple_choice" / "validation-00000-of-00001.parquet", TRUTHS)
    write(folder / "gsm8k" / "main" / "test.jsonl", [solved(7), solved(8)])
    write(folder / "gsm8k" / "main" / "train.jsonl", [solved(n) for n in range(20, 30)])
    write(folder / "hendrycks_math" / "algebra" / "test-00000-of-00001.parquet", [boxed(8), boxed(7)])
    write(folder / "hendrycks_math" / "algebra" / "train-00000-of-00001.parquet", [boxed(3), boxed(2)])
    return folder
