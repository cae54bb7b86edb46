"""Download a model's tokenizer from the Hugging Face hub: what training needs besides the data."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from huggingface_hub import get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

BAD_INPUT = 2
REQUIRED = ("tokenizer.json", "tokenizer_config.json")
OPTIONAL = ("special_tokens_map.json",)


class DownloadError(Exception):
    """One line that names the cause and the remedy."""


@dataclass
class Options:
    """Download a tokenizer, for --tokenizer of `python -m train` and `python -m train.prepare`.

    LLaMA-3's is gated: ask for access on its page on huggingface.co, create a token with read
    access, and set HF_TOKEN. Then:

    python scripts/download_hf_assets.py
    """

    repo: Annotated[str, tyro.conf.arg(metavar="OWNER/MODEL")] = "meta-llama/Llama-3.1-8B"
    """Model whose tokenizer to download."""

    to: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder for the files; by default assets/hf/MODEL, where training looks for LLaMA-3's."""

    hf_token: Annotated[str | None, tyro.conf.arg(metavar="TOKEN", help_behavior_hint="")] = None
    """Token with read access; by default $HF_TOKEN, or the one that `hf auth login` stored."""

    revision: Annotated[str, tyro.conf.arg(metavar="NAME")] = "main"
    """Branch, tag or commit."""

    force: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Replace existing files."""

    @property
    def folder(self) -> Path:
        return self.to or Path("assets/hf") / self.repo.rpartition("/")[2]


def main() -> int:
    options = tyro.cli(
        Options,
        prog="python scripts/download_hf_assets.py",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        written = download(options)
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"{options.folder}: {', '.join(written)}")
    return 0


def download(options: Options) -> list[str]:
    """Download the files, then copy them into the folder; returns their names.

    Raises:
        DownloadError: a file exists already, is missing on the hub, or cannot be read or written.
    """
    names = REQUIRED + OPTIONAL
    if not options.force and (there := [n for n in names if (options.folder / n).exists()]):
        raise DownloadError(
            f"--to {options.folder}: {', '.join(there)} already there: pass --force to replace"
        )
    snapshot = _snapshot(options)
    fetched = [name for name in names if (snapshot / name).exists()]
    if missing := set(REQUIRED) - set(fetched):
        raise DownloadError(f"--repo {options.repo}: has no {min(missing)}: pass another model")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        for name in fetched:
            partial = options.folder / f".{name}.partial"
            shutil.copyfile(snapshot / name, partial)
            os.replace(partial, options.folder / name)
    except OSError as error:
        raise DownloadError(
            f"--to {options.folder}: cannot be written ({error.strerror}): choose another folder"
        ) from error
    return fetched


def _snapshot(options: Options) -> Path:
    """The folder in the hub's cache that holds the files."""
    repo, known = f"--repo {options.repo}", options.hf_token or get_token()
    try:
        return Path(
            snapshot_download(
                options.repo,
                revision=options.revision,
                token=options.hf_token,
                allow_patterns=[*REQUIRED, *OPTIONAL],
            )
        )
    except HFValidationError:
        raise DownloadError(f"{repo}: write OWNER/MODEL, as in the address of its page") from None
    except GatedRepoError:
        if known:
            raise DownloadError(
                f"{repo} is gated, and the account of your token has no access: ask for it on the "
                "model's page; a fine-grained token must also allow gated repositories"
            ) from None
        raise DownloadError(
            f"{repo} is gated and there is no token: ask for access on the model's page, then set "
            "HF_TOKEN or pass --hf-token"
        ) from None
    except RevisionNotFoundError:
        raise DownloadError(f"--revision {options.revision}: {options.repo} has none") from None
    except RepositoryNotFoundError:
        remedy = "check --hf-token or HF_TOKEN" if known else "set HF_TOKEN or pass --hf-token"
        raise DownloadError(f"{repo}: not found; if it is private, {remedy}") from None
    except LocalEntryNotFoundError as error:
        cause = type(error.__cause__ or error).__name__
        raise DownloadError(
            f"{repo}: the hub cannot be reached ({cause}): check the network, the proxy variables "
            "and HF_ENDPOINT; or copy the folder from a machine that has it"
        ) from error
    except Exception as error:  # the hub's client raises many unrelated kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DownloadError(f"{repo}: the download failed ({reason}): run it again") from error


if __name__ == "__main__":
    sys.exit(main())
