"""Room for requests while a thread of the same process works, to load a release for instance.

    give_way()                 # in the thread that is to stand back
    switch_often()             # once a process that answers requests

Python's lock changes hands every 5 ms when two threads want it, and a request gives it up and wants
it back some dozen times: beside a release that loads it took ten times as long. With a tenth of
that it takes some milliseconds more; the loading thread pays with some of its speed.
"""

import os
import sys
import threading

SWITCH_S = 0.0005
NICENESS = 10


def switch_often() -> None:
    sys.setswitchinterval(SWITCH_S)


def give_way() -> None:
    """Of the calling thread alone, on Linux; elsewhere priorities are a process's, and stay."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
