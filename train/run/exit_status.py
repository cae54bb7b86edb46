"""Exit status of ``python -m train``; 0 is a result, 1 any other failure. No torch here."""

BAD_INPUT = 2

PREEMPTED = 75
"""The run was stopped, and the next start continues it; EX_TEMPFAIL of sysexits.h."""

INTERRUPTED = 130
"""By Ctrl-C, as in a shell: 128 + SIGINT."""
