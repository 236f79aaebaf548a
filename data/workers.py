"""Worker processes that read or write images: how many to start, and how they end with the main process."""

import multiprocessing
import os
import signal
import threading

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def usable_cores() -> int:
    """The number of CPU cores that this process may use."""
    # Containers and batch systems allow fewer cores than the machine has; macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ignore_stop_signals() -> None:
    """Ignore the signals that stop a run. They reach the whole process group; the main process ends its workers."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_with_parent() -> None:
    """End this process when its parent dies: a pool's worker whose parent was killed would wait forever."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is not a child process"
    parent.join()
    os._exit(1)
