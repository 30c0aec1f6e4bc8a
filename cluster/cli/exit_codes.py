"""The exit codes of `cardialign`, in one place."""

DONE = 0
FAILED = 1
USAGE = 2
STOPPED = 75
"""EX_TEMPFAIL: stopped at a committed checkpoint; the same command continues."""
INTERRUPTED = 130
"""128 + SIGINT: Ctrl-C."""
