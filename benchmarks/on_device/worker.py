"""The process of one step: `running.run_step` starts it and gives it options in one line of JSON.

    python -m benchmarks.on_device.worker ACTION RESULT

Whatever goes wrong becomes `{"error": "..."}` in the file RESULT. When the standard input ends, the
parent is gone, and so is this process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.backends.session import excerpt
from runtime.writing import write_together

ACTIONS = {
    "facts": "facts",
    "backends": "facts",
    "pytorch": "facts",
    "build": "speed",
    "engine": "speed",
    "verify": "speed",
    "latency": "speed",
    "stages": "speed",
    "reference": "speed",
    "bound": "rates",
    "rates": "rates",
    "plumbing": "plumbing",
    "astray": "plumbing",
    "folded": "folded",
}
"""The module of this package that has the function of each name."""
_EVERY = 0.5  # seconds, after which the parent is asked for again


def main(words: list[str] | None = None) -> int:
    """Do one step. Status 0 also where it failed with an exception: the result says so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("result", type=Path)
    arguments = parser.parse_args(words)
    action, result = arguments.action, arguments.result
    options = json.loads(sys.stdin.readline())
    threading.Thread(target=_follow_parent, daemon=True).start()
    answer: dict[str, Any]
    try:
        module = importlib.import_module(f".{ACTIONS[action]}", __package__)
        function: Callable[..., Any] = getattr(module, action)
        answer = {"result": function(**options)}
    # The end of a process: vendors' types have no base but Exception in common.
    except Exception as error:
        answer = {"error": _words_of(error)}
        import traceback

        traceback.print_exc()
    except SystemExit as error:
        answer = {"error": f"ended with status {error.code}"}
    write_together({result: json.dumps(answer).encode()})
    sys.stdout.flush()
    sys.stderr.flush()
    # Past the vendors' destructors: what they do after an error of the device is not our result.
    os._exit(0)


def _words_of(error: Exception) -> str:
    text = excerpt(str(error)).replace("\n", " / ") or "no words"
    own = type(error).__module__.startswith(("runtime.", "export.", "benchmarks."))
    return text if own else f"{type(error).__name__}: {text}"


def _follow_parent() -> None:
    """Nothing is read on Windows: it would block whoever else asks for that handle, such as a DLL
    that is loaded, or a child.
    """
    if sys.platform == "win32":
        import ctypes
        import msvcrt

        pipe = ctypes.c_void_p(msvcrt.get_osfhandle(sys.stdin.fileno()))
        while ctypes.windll.kernel32.PeekNamedPipe(pipe, None, 0, None, None, None):
            time.sleep(_EVERY)
    elif sys.stdin.read(1):
        return
    os._exit(1)


if __name__ == "__main__":
    main()
