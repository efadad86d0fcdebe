"""Whether a pickled loss works in a process that has not seen it: one helper process, started when first asked for.

Importing torch takes seconds, so the helper does that once. It answers each request in a fork of itself, which knows no
more than a process that was just started; where there is no fork, it answers one request and is started again.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Answer", "ask", "serve"]

_CODE = "from tensafe.training.losses.testing.aids.fresh_process import serve; serve()"
_LENGTH = 8


class Answer(NamedTuple):
    """What became of a loss.

    Attributes:
        shown: Its repr.
        value: What it returned as `loss`; None if it failed.
        error: What was raised, in a line; None if nothing was.
        missing: The module that could not be imported, or that lacks what it should have.
    """

    shown: str = ""
    value: Any = None
    error: str | None = None
    missing: str | None = None


class _Helper:
    """The other end of a pipe."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-W", "ignore", "-c", _CODE]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def ask(self, request: bytes) -> Answer | None:
        """Return the answer; None if the helper died of the request."""
        _write(self._pipe(self.process.stdin), request)
        answer = _read(self._pipe(self.process.stdout))
        return None if answer is None else pickle.loads(answer)

    def close(self) -> None:
        """End the process."""
        if self.owner != os.getpid():  # a fork has the pipes too, but they are its parent's
            return
        self._pipe(self.process.stdin).close()
        self.process.wait()
        self._pipe(self.process.stdout).close()

    def _pipe(self, pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None  # asked for at the start
        return pipe


_lock = threading.Lock()
_helper: _Helper | None = None


def ask(pickled: bytes, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Answer | None:
    """Load a pickled loss in another process, call it there and tell what came of it.

    Args:
        pickled: The loss.
        outputs: What it is called with.
        batch: Likewise.

    Returns:
        The answer; None if the process died.

    Raises:
        OSError: No process can be started here.
    """
    global _helper
    request = pickle.dumps((sys.path, torch.get_num_threads(), pickled, dict(outputs), dict(batch)))
    with _lock:
        if _helper is None or _helper.owner != os.getpid():
            _helper = _Helper()
        try:
            answer = _helper.ask(request)
        except BrokenPipeError:
            answer = None
        if answer is None or not hasattr(os, "fork"):
            _close()
        return answer


@atexit.register
def _close() -> None:
    global _helper
    if _helper is not None:
        _helper.close()
    _helper = None


def serve() -> None:
    """Answer requests until there are no more; what the helper process runs."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    for stream in (0, 1):  # a loss that prints must not write into the answers
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    while (request := _read(requests)) is not None:
        if not hasattr(os, "fork"):
            _write(answers, pickle.dumps(_answer(request)))
            return
        child = os.fork()
        if child == 0:
            _write(answers, pickle.dumps(_answer(request)))
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            return


def _answer(request: bytes) -> Answer:
    try:
        sys.path[:], threads, pickled, outputs, batch = pickle.loads(request)
        torch.set_num_threads(threads)
        loss = pickle.loads(pickled)
        return Answer(repr(loss), loss(outputs, batch)["loss"].detach())
    except ModuleNotFoundError as error:
        return Answer(error=str(error), missing=error.name)
    except Exception as error:
        missing = "__main__" if isinstance(error, AttributeError) and "__main__" in str(error) else None
        return Answer(error=f"{type(error).__name__}: {error}", missing=missing)


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(_LENGTH, "big") + data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes | None:
    head = pipe.read(_LENGTH)
    return pipe.read(int.from_bytes(head, "big")) if head else None
