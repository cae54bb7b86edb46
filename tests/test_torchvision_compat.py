"""torchvision is imported by the libraries that need it, next to the torch that is installed."""

import subprocess
import sys

CODE = """
from train import torchvision_compat

torchvision_compat.install()
torchvision_compat.install()
import timm.data
from transformers import LlamaForCausalLM
"""


def test_a_fresh_process_imports_what_needs_torchvision() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)
