"""Download a model's tokenizer from the Hugging Face hub: what training needs beside the data.

LLaMA-3's is gated: ask for access on its page, make a token that can read, and set HF_TOKEN. The
files come through the hub's cache and appear in the folder whole.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from huggingface_hub import get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

BAD_INPUT = 2
REQUIRED = ("tokenizer.json", "tokenizer_config.json")
OPTIONAL = ("special_tokens_map.json",)


class DownloadError(Exception):
    """One line that names the cause and the remedy."""


@dataclass
class Options:
    """Download a tokenizer from the Hugging Face hub."""

    repo: str = "meta-llama/Llama-3.1-8B"
    """The model whose tokenizer it is."""

    to: Path | None = None
    """Folder for the files; by default assets/hf/ and the model's name."""

    hf_token: str | None = None
    """A token that can read; by default HF_TOKEN, or that of `hf auth login`."""

    revision: str = "main"
    """Branch, tag or commit."""

    force: bool = False
    """Replace files that are already there."""

    @property
    def folder(self) -> Path:
        return self.to or Path("assets/hf") / self.repo.rpartition("/")[2]


def main() -> int:
    options = tyro.cli(Options, prog="python scripts/download_hf_assets.py")
    try:
        written = download(options)
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"{options.folder}: {', '.join(written)}")
    return 0


def download(options: Options) -> list[str]:
    """Fetch the files, then put them into the folder; the names of those written.

    Raises:
        DownloadError: a file is already there, is missing on the hub, or cannot be had or written.
    """
    there = [name for name in REQUIRED + OPTIONAL if (options.folder / name).exists()]
    if there and not options.force:
        raise DownloadError(
            f"--to {options.folder}: {', '.join(there)} already there: pass --force to replace"
        )
    fetched: dict[str, Path] = {}
    for name in tqdm(REQUIRED + OPTIONAL, "Downloading", unit=" files", delay=1):
        try:
            fetched[name] = _fetch(options, name)
        except EntryNotFoundError:
            if name in REQUIRED:
                raise DownloadError(f"--repo {options.repo}: has no {name}: name another") from None
            print(f"{options.repo} has no {name}: left out", file=sys.stderr)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        for name, source in fetched.items():
            _copy_whole(source, options.folder / name)
    except OSError as error:
        raise DownloadError(
            f"--to {options.folder}: cannot be written ({error.strerror}): choose another folder"
        ) from error
    return list(fetched)


def _fetch(options: Options, name: str) -> Path:
    """The file in the hub's cache.

    Raises:
        EntryNotFoundError: the repository has no such file.
        DownloadError: it cannot be had.
    """
    repo, known = f"--repo {options.repo}", options.hf_token or get_token()
    try:
        return Path(
            hf_hub_download(options.repo, name, revision=options.revision, token=options.hf_token)
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
    except LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError
        raise DownloadError(
            f"the hub cannot be reached ({_cause(error)}): check the network, the proxy variables "
            "and HF_ENDPOINT; or copy the folder from a machine that has it"
        ) from error
    except EntryNotFoundError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise DownloadError(
                f"{repo}: the hub refuses the token ({status}): make a new one that can read"
            ) from error
        raise DownloadError(f"{repo}: the hub answers {status}: try again later") from error
    except OSError as error:
        raise DownloadError(
            f"the download failed ({type(error).__name__}: {error.strerror or error}): run it again"
        ) from error


def _cause(error: BaseException) -> str:
    """The kind of the error that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__


def _copy_whole(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
