"""A rank that runs the first block of docs/recipes.md and the one under a heading."""

import json
import re
import sys
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"


def main() -> int:
    """Run the blocks, then print the learning rates and the rank's weights, as JSON."""
    torch.set_num_threads(1)
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
    (_, _, section) = text.partition(f"\n## {sys.argv[1]}\n")
    names: dict[str, object] = {"__name__": "__main__"}
    first, chosen = blocks.search(text), blocks.search(section)
    assert first is not None
    assert chosen is not None
    for block in (first, chosen):
        exec(compile(block[1], str(PAGE), "exec"), names)
    p = names["p"]
    print(json.dumps({"c": p.c, "sites": len(p.sites)}), flush=True)  # type: ignore[attr-defined]
    return 0
