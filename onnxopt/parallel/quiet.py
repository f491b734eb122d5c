"""Quiet for measurements of time: nobody else works on this machine meanwhile.

Processes that share the machine's cores agree by locks on a file, which the system lets go of when
a process dies. Whoever works holds the room's lock together with the others; whoever times holds it
alone. A second lock, the door, keeps those who work from coming in again before those who wait for
quiet have had their turn. Where no file was named, nothing is locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import threading
from collections.abc import Iterator

__all__ = ["let_others_time", "quiet", "share_machine", "waiting", "working"]

_path: pathlib.Path | None = None


class _Place(threading.local):
    """What a thread holds."""

    room: int | None = None
    alone: bool = False


_place = _Place()


def share_machine(path: pathlib.Path | None) -> None:
    """Say which file this process shares with others who work on the machine; None for nobody."""
    global _path
    _path = path


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Work, while nobody times; of each thread that does."""
    if _path is None or _place.room is not None:
        yield
        return
    _place.room = os.open(f"{_path}.room", os.O_RDWR | os.O_CREAT)
    try:
        _enter(_place.room)
        yield
    finally:
        os.close(_place.room)
        _place.room = None


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Wait for somebody else's work, such as a thread's, without keeping others from timing."""
    room = _place.room
    if room is None or _place.alone:
        yield
        return
    fcntl.flock(room, fcntl.LOCK_UN)
    try:
        yield
    finally:
        _enter(room)


def let_others_time() -> None:
    """Make room for those who wait to time; to be called often, between pieces of work."""
    if _path is None or _place.room is None or _place.alone:
        return
    with _door() as door:
        try:
            fcntl.flock(door, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
    with waiting():
        pass


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Measure time, while nobody works."""
    if _path is None or _place.alone:
        yield
        return
    with waiting(), _door() as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        room = os.open(f"{_path}.room", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(room, fcntl.LOCK_EX)
            _place.alone = True
            yield
        finally:
            _place.alone = False
            os.close(room)


def _enter(room: int) -> None:
    """Come in, once nobody stands at the door who wants to be alone."""
    with _door() as door:
        fcntl.flock(door, fcntl.LOCK_SH)
        fcntl.flock(room, fcntl.LOCK_SH)


@contextlib.contextmanager
def _door() -> Iterator[int]:
    door = os.open(f"{_path}.door", os.O_RDWR | os.O_CREAT)
    try:
        yield door
    finally:
        os.close(door)
