#!/usr/bin/env bash
# Makes the environment if needed and runs the tests; arguments go to pytest (-m slow, -k name).
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec python -m pytest "$@"
