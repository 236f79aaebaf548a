"""How a command ends: one sentence for a mistake of the user, a traceback for a bug, and the exit code."""

import errno
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sed_sr.options.errors import UserError

FREE_SPACE = "free some space and start again"
DISK_FAILED = "the disk or the network file system failed; start again once it works"
REMEDIES = {  # what the user can do about failures of the machine
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EIO: DISK_FAILED,
    errno.ESTALE: DISK_FAILED,
}
EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # as shells report a command stopped by Ctrl-C


def run(main: Callable[[], int]) -> NoReturn:
    """Call `main` and exit with the code it returns.

    A UserError, and a disk that is full or fails, end with one sentence on stderr and exit code 2; Ctrl-C ends with
    "interrupted" and 130; a closed stdout (`| head`) ends silently with 1. Any other exception is a bug: it ends with a
    traceback and 1.
    """
    threading.excepthook = _report_thread
    code = _exit_code(main)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # Skip the interpreter's shutdown: a rank was seen to abort (SIGABRT) in it after its work was done, which the
        # launcher reports as a failed run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _exit_code(main: Callable[[], int]) -> int:
    file = Path(sys.argv[0])
    script = file.parent.name if file.name == "__main__.py" else file.name
    try:
        code = main()
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout again at exit and would report the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REMEDIES:
            where = f" ({error.filename})" if error.filename else ""
            print(f"{script}: error: {error.strerror}{where}: {REMEDIES[error.errno]}", file=sys.stderr)
            return EXIT_USER_ERROR
        # Printed here and not by the interpreter: until it exits, the exception would keep the frames it passed
        # through alive, and with them the loader, whose worker processes would not end.
        traceback.print_exc()
        return EXIT_BUG


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    # The main thread reports a full disk; a background writer (TensorBoard's) should not add a traceback.
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in REMEDIES):
        threading.__excepthook__(failure)


def renamed_command(old: str, new: str) -> NoReturn:
    """Print the new name of a command and exit with code 2."""
    print(f"python -m {old} is now python -m {new}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)
