"""What a command says: progress and errors on stderr, what was asked for on stdout.

A listener may go away (`| head -1`), be full (a log on a full disk) or never have been there
(`2>&-`). Work goes on without it, and the exit status is that of the work.
"""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from pathlib import Path
from typing import TextIO

from runtime.errors import OutputError

# Escaped where they stand in a file's name: controls could steer the terminal, surrogates cannot
# be encoded, and invisible formats or line ends could feign another text.
_UNSHOWN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def prepare() -> None:
    """Give a closed stdin, stdout or stderr a place that swallows all.

    Otherwise the next file to be opened would get its number, and a library's chatter on stderr
    would end in that file.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def release() -> None:
    """Empty the buffers, so that the interpreter has nothing to complain about when it exits. For
    commands alone: a stream that nobody reads leads nowhere from now on.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _drop(stream)


def say(*lines: str) -> None:
    """Write lines to stderr, which stays as it is: it belongs to the program, not to a library.
    Never fails: nobody listens, nothing is said.
    """
    if sys.stderr is None:  # a program without a console
        return
    with contextlib.suppress(OSError, ValueError):
        for line in lines:
            sys.stderr.write(_encodable(line, sys.stderr))
        sys.stderr.flush()


def show(line: str) -> None:
    """Write a line of a command's result to stdout; quiet when its reader has gone.

    Raises: OutputError when it cannot be written, as on a full disk.
    """
    try:
        sys.stdout.write(_encodable(line, sys.stdout))
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
    except (OSError, ValueError) as error:
        _drop(sys.stdout)
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write to standard output: {reason}") from error


def one_line(text: object) -> str:
    """The text, or a file's name, so that it can be shown within a line."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNSHOWN and character != "\t"
        else character
        for character in str(text)
    )


def _encodable(text: str, stream: TextIO) -> str:
    """A line, or lines, ended; what the stream's encoding lacks becomes escapes."""
    encoding = stream.encoding or "utf-8"
    text = "".join(f"{one_line(line)}\n" for line in text.split("\n"))
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _drop(stream: TextIO) -> None:
    """From now on the stream leads nowhere, with what still lies in its buffer."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        return  # it has no file: the stand-in of a test or a notebook
