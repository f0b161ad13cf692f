"""A process that answers messages: it ends when this one does, and its death is an error here and no wait."""

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cca.errors import InputError

_SECONDS = 15
"""How long a process may take to end by itself."""


class Process:
    """`script` at work, which is given one end of a socket. Messages and answers are lines of JSON.

    What it prints goes to a file, of which an error shows the last line.
    """

    def __init__(self, name: str, python: str, script: Path, environment: Mapping[str, str]):
        self.name, self.log = name, tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        here, there = socket.socketpair()
        with there:
            try:
                self.child = subprocess.Popen(
                    [python, str(script), str(there.fileno())],
                    env=dict(environment),
                    pass_fds=[there.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=self.log,
                    stderr=self.log,
                    start_new_session=True,  # an interrupt from the keyboard is for this process alone
                )
            except OSError as error:
                here.close()
                self.log.close()
                raise InputError(f"cannot start {name} with {python} ({error.strerror})") from error
        self.channel = here
        self.incoming = here.makefile("rb")

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer to `message`; whatever goes wrong on the way, an interrupt too, ends it.

        Raises:
            Refused: the answer is an error.
            ConnectionError: it has ended.
        """
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # the missing answer says so too
                self.channel.sendall(json.dumps(message).encode() + b"\n")
            line = b""
            with suppress(ConnectionResetError):
                line = self.incoming.readline()
            if not line.endswith(b"\n"):
                raise ConnectionError(self._obituary())
            answer = json.loads(line)
        except BaseException:
            self.end(at_once=True)
            raise
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def _obituary(self) -> str:
        try:
            code = self.child.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += ", as by a system whose memory is full"
        self.log.seek(0, os.SEEK_SET)
        lines = [line.strip() for line in self.log.read().decode(errors="replace").splitlines()]
        last = next((f"; it said last: {line}" for line in reversed(lines) if line), "")
        return f"the process of {self.name} {how}{last}"

    def end(self, at_once: bool = False) -> None:
        """Have it end, and all that it started."""
        self.incoming.close()
        self.channel.close()
        if not at_once:
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(_SECONDS)
        if self.child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
        self.log.close()


class Refused(Exception):
    """A process could not do what a message asked for; it is still at work."""
