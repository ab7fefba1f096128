"""Become another program that dies with its parent.

``python launch.py PARENT USER PROGRAM ARGUMENT...``: PARENT is the parent's process id, USER a name
or ``-``. The process id stays the same, so the caller can signal it. On systems other than Linux
the parent must do the tidying itself.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, user, *command = sys.argv[1:]
    if user != "-":
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    if sys.platform == "linux":
        # After the change of user, which would clear it.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # the parent died before the line above
            sys.exit(1)
    os.execvp(command[0], command)


main()
