"""Exit status of ``python -m train``; 0 is a result, 1 any other failure. No torch here."""

BAD_INPUT = 2

PREEMPTED = 75
"""The run was stopped by a scheduler, which is to start it again; EX_TEMPFAIL of sysexits.h."""

INTERRUPTED = 130
"""The run was stopped by Ctrl-C, so nothing is to start it again; 128 + SIGINT, as in a shell."""
