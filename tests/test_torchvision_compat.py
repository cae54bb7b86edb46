"""torchvision is imported by the libraries that need it, next to the torch that is installed."""

import subprocess
import sys
from pathlib import Path

CODE = """
from train import torchvision_compat

torchvision_compat.install()
torchvision_compat.install()
import timm.data
from transformers import LlamaForCausalLM
"""


SCRIPTS = Path(__file__).parents[1] / "scripts"
# Python reads the .pth files of site-packages in the same way.
STARTED = f"""
import site, sys
site.addsitedir({str(SCRIPTS)!r})
assert "torch" not in sys.modules
from transformers import LlamaForCausalLM
import timm.data
"""


def test_a_fresh_process_imports_what_needs_torchvision() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)


def test_the_environments_start_file_declares_them_when_torchvision_is_asked_for() -> None:
    subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}{STARTED}"], check=True
    )
