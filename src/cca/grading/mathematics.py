"""The grader ``math-verify``: whether text and gold answer are the same mathematics to the math_verify library.

The library runs in a process of its own, since nothing else ends sympy where it computes for ever.
"""

import atexit
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cca.errors import InputError, install_command
from cca.grading.answers import Graded, final_text
from cca.grading.characters import plain
from cca.grading.numbers import improper, one_number

_SECONDS = 1.0
"""Processor time that math-verify has for one text; it usually takes a few milliseconds."""
_BYTES = 2**30
_WORKER = (
    "import sys; sys.path.insert(0, sys.argv[1]); from cca.grading.mathematics import serve; del sys.path[0]; serve()"
)
"""Told where this very package is, which may be on the path of this process alone."""
_PACKAGE = Path(__file__).parents[2]
_WORDS = re.compile(r"[A-Za-z]{3,}")
_PERCENT = re.compile(r"%|percent|pct", re.IGNORECASE)
_SIGN_BEFORE_CURRENCY = re.compile(r"(?<![\w)\]}])-(\$|€|£|¥|₹)\s?(?=\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,]?\d)")
_OPERATORS = re.compile(r"\\(?:times|div|cdot|[dtc]?frac)(?![A-Za-z])")
_NO_ARITHMETIC = re.compile(r"[A-Za-zΑ-ω\\<>!≤≥≠]|\A\D*\Z")


class MathVerify:
    """The math-verify grader: whether text and gold are the same mathematics to the math_verify library.

    Sympy can compute for ever ("9**9**9"), the library's own timeouts work in the main thread only, and nothing stops
    a long multiplication inside one bytecode. So the library runs in a process of its own, which the kernel ends after
    a second of processor time (not of the clock, so that a busy machine grades alike); the next text gets a new one.
    A text that ended it is wrong.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, text: str, gold: str) -> Graded:
        """Grade `text`.

        Raises:
            InputError: math-verify cannot be imported.
        """
        with self._lock:
            try:
                # a forked process sees its parent's worker as ended, too, and so gets its own
                if self._process is None or self._process.poll() is not None:
                    self._process = self._start()
                reply = self._ask(self._process, json.dumps([text, gold]))
            except BaseException:  # else the reply to an interrupted question would be taken for the next one's
                self.close()
                raise
            if not reply:
                self.close()
        return Graded(*json.loads(reply)) if reply else Graded(final_text(text), False)

    def _start(self) -> subprocess.Popen[str]:
        self.close()
        if sys.platform == "win32":
            raise InputError(
                "grader math-verify needs Linux or macOS, whose processes can be limited in their time; choose another "
                "problems.grader, such as number"
            )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _WORKER, str(_PACKAGE)],
            env={**os.environ, "PYTHONHASHSEED": "0"},  # hashes order sympy's sets
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
        )
        greeting = self._ask(self._process, None)
        if greeting != "ready":
            raise InputError(
                f"grader math-verify does not start ({greeting or 'it ended at once'}); install it with: "
                f"{install_command('math-verify')}"
            )
        return self._process

    def _ask(self, process: subprocess.Popen[str], question: str | None) -> str:
        """The next line that the process writes, or nothing where it has ended."""
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):
            if question:
                process.stdin.write(question + "\n")
                process.stdin.flush()
        line = process.stdout.readline()
        return line.strip() if line.endswith("\n") else ""

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process:
            with contextlib.suppress(BrokenPipeError), process:
                process.kill()


def serve() -> None:
    """What the process of `MathVerify` does: a line of JSON in, a line out, until the input ends."""
    replies, sys.stdout = sys.stdout, sys.stderr
    try:
        import logging
        import resource
        import signal

        from math_verify import parse, verify
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=replies)
        return
    logging.disable()  # it warns that it has no timeouts
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then ends this
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process, whatever it is doing
    with contextlib.suppress(ValueError, OSError):  # not every system can limit it
        resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))

    def read(text: str, bare: bool) -> list[Any]:
        return _expressions(lambda part: parse(part, parsing_timeout=None), text, bare)  # pyright: ignore[reportArgumentType]

    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        text, gold = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        found = read(text, bare=False)
        correct = verify(read(gold, bare=True), found, timeout_seconds=None)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([_answer(text, found), bool(found) and correct]), file=replies, flush=True)


def _answer(text: str, found: list[Any]) -> str:
    """How the expression is written, or what `text` marks as its answer where that is none."""
    if found:
        return str(found[-1]).strip("* ") or str(found[0])
    return final_text(text) if "####" in text or "\\boxed" in text else ""


def _expressions(parse: Callable[[str], list[Any]], text: str, bare: bool) -> list[Any]:
    """The expression that `text` ends in, and how it is written.

    The library looks for boxes and "the answer is" in prose and knows LaTeX by its delimiters. What follows ``####``,
    what the only box holds, and a gold answer are the answer whole. Where that is one number, its unit is left out,
    which the library would read as variables ("12 km/h"). Where it is not, it is put into a box, since without
    delimiters the library would read only a number of it ("2" of "2\\sqrt{3}"); unless there are words in it.
    """
    _, marker, last = plain(text).rpartition("####")
    for written, readable in (("⁄", "/"), ("\\$", "$"), (".}", "}")):
        last = last.replace(written, readable)
    text = improper(_SIGN_BEFORE_CURRENCY.sub(r"\1-", last)).strip()
    boxes = text.count("\\boxed")
    if boxes > 1 or not (bare or marker or boxes):
        return parse(text)
    whole = _SPACED_THOUSANDS.sub(lambda m: m[0].replace(" ", ""), final_text(text))
    left, equals, right = whole.rpartition("=")
    if right.strip() and not _NO_ARITHMETIC.search(_OPERATORS.sub("", left)):  # "6 * 2 = 12"
        text, boxes, left, equals = right.strip(), 0, "", ""
    number = one_number(f"{left}{equals}{right}")
    if number and not _PERCENT.search(whole):
        return parse(f"\\boxed{{{left}={number}}}" if equals and not _WORDS.search(left) else number)
    if boxes:
        return parse(text)
    ways = [f"\\boxed{{{text}}}", text]
    if "\\" not in text and _WORDS.search(text):
        ways.reverse()
    found = [parse(way) for way in ways]
    return next((f for f in found if f and not isinstance(f[0], str)), found[0])


math_verify = MathVerify()
"""The one that all graders share: a process is started with the first text and ended with this one."""
atexit.register(math_verify.close)
