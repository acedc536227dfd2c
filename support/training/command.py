"""Signals and output of a command that may run for days."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, NoReturn, TextIO


class Stopped(BaseException):
    """Raised when a signal asks the command to stop. The argument is the signal's number.

    Like KeyboardInterrupt, it is not an Exception, so code that handles damaged files lets it pass.
    """


class EarlyStop(Exception):
    """Raised when the validation loss no longer improves."""


def stop(number: int, frame: Any) -> NoReturn:
    """Stop immediately: a handler for `signals`."""
    raise Stopped(number)


def reason(error: Exception) -> str:
    """Return an error as one line that begins with the file's name, if there is one."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {error}"


@contextmanager
def signals(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP (a closed terminal) inside a `with` block.

    Signals that are ignored, as under `nohup`, stay ignored.
    """
    with ExitStack() as restored:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows lacks the last one
            if number and signal.getsignal(number) != signal.SIG_IGN:
                restored.callback(signal.signal, number, signal.signal(number, handler))
        yield


class SafeStream:
    """A text stream whose writes never raise.

    It escapes characters outside its encoding. After a failure, such as a closed pipe or a full
    disk, it discards all output, and `error` is the reason.
    """

    def __init__(self, stream: TextIO, nothing: TextIO) -> None:
        self.stream, self.nothing = stream, nothing
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:  # tqdm asks for `encoding` and others
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        encoding = self.stream.encoding or "utf-8"  # that of a StringIO is None
        try:
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.error = self.error or error
            # Python flushes the stream again at exit, and that must not fail either.
            with suppress(OSError, ValueError):
                os.dup2(self.nothing.fileno(), self.stream.fileno())

    def flush(self) -> None:
        """Do nothing, because each write flushes."""


@contextmanager
def safe_output() -> Iterator[SafeStream]:
    """Make standard output and error safe to write to in a `with` block; yield the former."""
    with open(os.devnull, "w") as nothing:  # replaces a stream that is None, as without a console
        out, error = (SafeStream(s or nothing, nothing) for s in (sys.stdout, sys.stderr))
        with redirect_stdout(out), redirect_stderr(error):  # type: ignore[type-var]
            yield out
