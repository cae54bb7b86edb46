# The other scripts source this file. It creates .venv, again whenever constraints.txt,
# pyproject.toml or this file has changed, and puts it first on PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Many container images set it. Without byte code each process compiles 4,000 modules: 15 s of CPU.
unset PYTHONDONTWRITEBYTECODE

stamp=.venv/.made-from
wanted=$(cat constraints.txt pyproject.toml scripts/env.sh | cksum)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $python is older than Python 3.11; set PYTHON=/path/to/python3.11" >&2
        exit 1
    }
    echo "Making .venv (torch and torchtitan: one to three minutes) ..." >&2
    "$python" -m venv .venv
    # Not compiled here: of 19,000 modules, a training imports a fifth.
    pip_install() {
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
            -c constraints.txt "$@"
    }
    # torch first and alone: its constraint selects the tested build, which the others then keep.
    pip_install torch
    pip_install --editable '.[harness,dev]' scikit-learn
    # Without their dependencies: torchvision would replace torch's CPU build by the one it is built
    # for (see train/torchvision_compat.py).
    pip_install --no-deps mup timm torchvision
    # Who imports torchvision in this environment first, transformers too, gets what it lacks.
    packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp scripts/torchvision_cpu.pth "$packages"
    # Compiles what a training imports once, before several processes do so at the same time.
    .venv/bin/python -c 'import train.trainer'
    echo "$wanted" > "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
