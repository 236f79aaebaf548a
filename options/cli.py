"""How a command ends: entry scripts run their `main` here, so that a mistake is one sentence and never a traceback."""

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
REMEDIES = {  # what to do about failures of the machine
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EIO: DISK_FAILED,
    errno.ESTALE: DISK_FAILED,
}
EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # what a shell reports for a command stopped by Ctrl-C


def run(main: Callable[[], int]) -> NoReturn:
    """Call `main` and exit with the code it returns.

    A UserError and a disk that is full or fails end with one sentence on stderr and exit code 2, Ctrl-C with
    "interrupted" and 130, a reader of stdout that went away (`| head`) silently with 1. Any other exception is a bug: a
    traceback, and 1.
    """
    file = Path(sys.argv[0])
    script = file.parent.name if file.name == "__main__.py" else file.name
    threading.excepthook = _thread_failed
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more on its way out, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REMEDIES:
            where = f" ({error.filename})" if error.filename else ""
            print(f"{script}: error: {error.strerror}{where}: {REMEDIES[error.errno]}", file=sys.stderr)
            code = EXIT_USER_ERROR
        else:
            # Printed here, and not on the way out of the interpreter: until then the traceback would hold on to what
            # it passed through, and the worker processes of a loader would not end.
            traceback.print_exc()
            code = EXIT_BUG
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # A rank was seen to abort (SIGABRT) while its interpreter shut down, after all was done, and the launcher
        # reports that as a failure of the run: it leaves without a shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    # Of a disk that is full the main thread tells; a writer in the background (TensorBoard's) would add a traceback.
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in REMEDIES):
        threading.__excepthook__(failure)


def renamed_command(old: str, new: str) -> NoReturn:
    """Say that a command has another name now, and exit with code 2."""
    print(f"python -m {old} is now python -m {new}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)
