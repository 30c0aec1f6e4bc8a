"""The exit codes of `cardialign`; those of errors are theirs (`cardialign.data_shards.errors`)."""

DONE = 0
FAILED = 1
STOPPED = 75
"""EX_TEMPFAIL: stopped at a committed checkpoint; the same command continues."""
INTERRUPTED = 130
"""128 + SIGINT: Ctrl-C."""
