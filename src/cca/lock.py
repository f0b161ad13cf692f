"""A folder in which one process works at a time.

The system's own lock on the file `.lock`, so that it ends with its process however that ends; who holds it stands
beside it, for the message to whoever comes second. Looking takes no lock.
"""

import atexit
import errno
import os
import shlex
import socket
import sys
import textwrap
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self
from weakref import WeakSet

from filelock import lock_descriptor

from cca.errors import InputError
from cca.io import from_json, to_json, write_text

_UNSUPPORTED = {getattr(errno, name, None) for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK")}


@dataclass(frozen=True)
class Owner:
    """Who works in a folder. since: local time, ISO 8601."""

    process: int
    host: str
    command: str
    since: str


class FolderLock:
    """Holds `folder` until it is released, let go of, or its process ends.

    Raises:
        InputError: somebody holds it; the message says who.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self._file, self._owner = folder / ".lock", folder / ".owner.json"
        self._opened: int | None = self._take(folder)
        _HELD.add(self)
        try:
            write_text(self._owner, to_json(_me()) + "\n")
        except BaseException:
            self.release()
            raise

    def _take(self, folder: Path) -> int:
        while True:
            opened = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _locked(opened, folder, self._owner):
                    raise InputError(_said(folder, _working(self._owner)))
                if self._is(opened):
                    return opened
            except FileNotFoundError:  # whoever had it deleted it as it was opened here
                pass
            except BaseException:
                os.close(opened)
                raise
            os.close(opened)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _is(self, opened: int) -> bool:
        """Whether the lock's file is still the one that was opened."""
        return sys.platform == "win32" or os.path.samestat(os.fstat(opened), self._file.stat())

    def release(self) -> None:
        """Let others work in the folder. A second time does nothing."""
        opened, self._opened = self._opened, None
        if opened is None:
            return
        try:
            with suppress(OSError):
                if self._is(opened):  # the folder may have been deleted and made anew
                    self._owner.unlink(missing_ok=True)
                    if sys.platform != "win32":  # while it is locked, so that it is no other's
                        self._file.unlink(missing_ok=True)
        finally:
            os.close(opened)
        if sys.platform == "win32":  # which deletes no open file, so not one that another has
            with suppress(OSError):
                self._file.unlink(missing_ok=True)

    def __del__(self) -> None:
        if getattr(self, "_opened", None) is not None:
            self.release()

    def forked(self) -> None:
        """In a forked child: the lock is the parent's, and ends with that."""
        opened, self._opened = self._opened, None
        if opened is not None:
            os.close(opened)


_HELD: WeakSet[FolderLock] = WeakSet()


@atexit.register
def _release_all() -> None:
    """Of scripts that let no run go; what this needs is gone when their last objects are."""
    for lock in list(_HELD):
        lock.release()


def _forked() -> None:
    for lock in list(_HELD):
        lock.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _locked(opened: int, folder: Path, path: Path) -> bool:
    """Lock an open file, or say that its file system cannot."""
    try:
        return lock_descriptor(opened, blocking=False)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        if owner := _working(path):
            raise InputError(f"{_said(folder, owner)}; if that is not so, delete {path}") from None
        print(f"note: {folder} cannot be locked ({error.strerror}): let nobody else work in it", file=sys.stderr)
        return True


def make_and_lock(folder: Path) -> FolderLock:
    """Lock `folder`, which is made where it is new.

    Raises:
        InputError: somebody holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FolderLock(folder)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot write to {folder}: {why}; choose another folder with --out") from error


def _me() -> Owner:
    words = shlex.join(sys.argv).encode("utf-8", "backslashreplace").decode()
    command = textwrap.shorten(words, 120, placeholder=" ...")
    return Owner(os.getpid(), socket.gethostname(), command, datetime.now().astimezone().isoformat(timespec="seconds"))


def _working(path: Path) -> Owner | None:
    """Whom `path` names; None where that process has ended, or the one that has the lock has not written it yet."""
    owner = None
    try:
        owner = from_json(path.read_bytes(), Owner, str(path))
        if sys.platform != "win32" and owner.host == socket.gethostname():
            os.kill(owner.process, 0)  # only asks whether there is one
    except PermissionError:  # there is, of another user
        return owner
    except (OSError, OverflowError, InputError):
        return None
    return owner


def _said(folder: Path, owner: Owner | None) -> str:
    if owner is None:
        return f"another process has just begun to work in {folder}; wait for it to end, or choose another folder"
    if (owner.process, owner.host) == (os.getpid(), socket.gethostname()):
        return f"this process works in {folder} already, since {owner.since}; close that run first: run.close()"
    return (
        f"process {owner.process} on {owner.host} works in {folder} since {owner.since} ({owner.command}); wait for it "
        "to end, end it, or choose another folder"
    )
