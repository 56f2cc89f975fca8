"""Models from the Hugging Face hub: the files that a conversion reads, in the hub's own cache."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phiquant.errors import FormatError, IoError, PhiquantError, UnsupportedError, UsageError
from phiquant.safetensors import INDEX, SINGLE
from phiquant.strict_json import read_json

_SIDE_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "README.md",  # the model card, which names the licence and the base model
    }
)
_LEGAL = re.compile(r"(?:LICEN[CS]E|NOTICE)[^/]*", re.IGNORECASE)

# The hub's own rules for ids; a word with a file's suffix is a path that was mistyped.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"(?!.*(?:--|\.\.))({_PART}/{_PART})")
_FILE = re.compile(
    r".*\.(?:safetensors|gguf|bin|pt|pth|ckpt|json|onnx|xml|git|ipynb)", re.IGNORECASE
)
# Git's rules for names of branches and tags. They matter: the cache has a file of that name.
_REVISION = re.compile(
    r"(?![/.-])(?!.*(?:\.\.|//|/\.|@\{|[/.]$))[^\s~^:?*\[\\\x00-\x1f\x7f]{1,200}"
)

# Whose exceptions mean that the network failed; huggingface_hub changed libraries between versions.
_HTTP_LIBRARIES = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})


@dataclass(frozen=True)
class _Listed:
    """A file as the hub lists it: its size in bytes, and the name of its blob in the cache."""

    size: int
    blob: str | None


@dataclass(frozen=True)
class _Listing:
    commit: str
    files: dict[str, _Listed]


def is_hub_id(text: str) -> bool:
    """Whether ``text`` has the form ``owner/name[@revision]``; nothing is looked up."""
    repo, at, revision = text.partition("@")
    return (
        len(repo) <= 96
        and _ID.fullmatch(repo) is not None
        and _FILE.fullmatch(repo) is None
        and (not at or _REVISION.fullmatch(revision) is not None)
    )


def fetch(source: str, *, progress: bool = False) -> Path:
    """Bring a model from the hub into the hub's cache, unless it is there already.

    Parameters
    ----------
    source : str
        ``owner/name``, or ``owner/name@revision`` with a branch, a tag or a commit.
    progress : bool
        Show the hub's progress bars on stderr.

    Returns
    -------
    Path
        The snapshot's folder: config, tokenizer, licence, model card, and the safetensors files
        that the index names. With ``HF_HUB_OFFLINE=1``, or when the hub can't be reached, the
        snapshot of the last time.

    Raises
    ------
    phiquant.IoError
        The repository or revision doesn't exist or isn't open to this user, the hub can't be
        reached, the download broke off, or the disk is too small.
    phiquant.UnsupportedError
        The repository has no safetensors.
    phiquant.FormatError
        It lacks files that every model has, or its index is damaged.
    phiquant.UsageError
        ``source`` is no hub id.
    """
    if not is_hub_id(source):
        raise UsageError(
            f"{source!r} is no hub id", remedy="Write owner/name, or owner/name@revision."
        )
    repo, _, revision = source.partition("@")
    revision = revision or "main"
    from huggingface_hub import constants

    with progress_bars(progress):
        if constants.HF_HUB_OFFLINE:
            return _from_cache(repo, revision, "HF_HUB_OFFLINE keeps phiquant off the network")
        # A branch that moves while it is read makes a second round; nobody pushes three times.
        for _ in range(3):
            try:
                listing = _list(repo, revision)
            except Exception as error:
                refusal = _refusal(error, repo, revision)
                if refusal is not None:
                    raise refusal from error
                reason = unreachable(error)
                if reason is None:
                    raise
                folder = _from_cache(repo, revision, reason)
                logging.getLogger("phiquant").warning(
                    "%s: %s; going on with the copy in the cache", repo, reason
                )
                return folder
            try:
                folder = _download(repo, revision, listing)
            except PhiquantError:
                raise
            except Exception as error:
                raise (_refusal(error, repo, revision) or _broken_off(error, repo)) from error
            if folder.name == listing.commit:
                return folder
    raise IoError(
        f"{repo}: {revision!r} keeps changing", remedy="Name a commit: owner/name@commit."
    )


def _list(repo: str, revision: str) -> _Listing:
    from huggingface_hub import HfApi

    info = HfApi(library_name="phiquant").model_info(
        repo, revision=revision, files_metadata=True, timeout=30.0
    )
    files = {}
    for file in info.siblings or ():
        blob = file.lfs.sha256 if file.lfs is not None else file.blob_id
        files[file.rfilename] = _Listed(file.size or 0, blob)
    if info.sha is None:
        raise ValueError("the answer names no commit")
    return _Listing(info.sha, files)


def _download(repo: str, revision: str, listing: _Listing) -> Path:
    from huggingface_hub import hf_hub_download

    def get(name: str, revision: str) -> Path:
        # In this thread and one by one, not by snapshot_download: its pool answers a Ctrl-C only
        # when whole shards have arrived. (Xet, which the hub uses, is parallel within a file.)
        return Path(hf_hub_download(repo, name, revision=revision, library_name="phiquant"))

    if "config.json" not in listing.files:
        raise FormatError(
            "has no config.json",
            file=repo,
            remedy="Give a model's own repository, not a part of one.",
        )
    names = sorted(name for name in listing.files if name in _SIDE_FILES or _LEGAL.fullmatch(name))
    if INDEX in listing.files:
        _check_disk(repo, listing, [INDEX])
        shards = _shards(get(INDEX, listing.commit))
        missing = [shard for shard in shards if shard not in listing.files]
        if missing:
            raise FormatError(
                f"names the shard {missing[0][:80]!r}, which the repository does not have",
                file=f"{repo}/{INDEX}",
                remedy="The upload is incomplete: choose another revision, or tell its owner.",
            )
        names += [INDEX, *shards]
    else:
        names.append(_single(repo, list(listing.files)))
    _check_disk(repo, listing, names)
    for name in names:
        path = get(name, listing.commit)
        size = path.stat().st_size
        if size != listing.files[name].size:
            raise FormatError(
                f"has {size} bytes, and {listing.files[name].size} on the hub",
                file=path,
                remedy=f"The cache is damaged: delete {path.resolve()} and try again.",
            )
    # By the branch's name, so that the cache remembers for offline use which commit it was.
    return get("config.json", revision).parent


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError("has no weight_map", file=index)
    return sorted({str(name) for name in weight_map.values()})


def _single(repo: str, files: list[str]) -> str:
    """The one safetensors file of a repository without an index."""
    if SINGLE in files:
        return SINGLE
    found = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if len(found) == 1:
        return found[0]
    if found:
        raise FormatError(f"has {len(found)} safetensors files but no {INDEX}", file=repo)
    ggufs = sorted(name for name in files if name.endswith(".gguf"))
    if ggufs:
        raise UnsupportedError(
            f"holds GGUF files and no safetensors, such as {ggufs[0]}",
            file=repo,
            remedy=f"Fetch that file (`hf download {repo} {ggufs[0]}`) and give its path.",
        )
    pickles = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth")))
    if pickles:
        raise UnsupportedError(
            f"holds pickled weights ({pickles[0]}) and no safetensors; a pickle can run any code "
            "and is never loaded",
            file=repo,
            remedy="Look for a revision with safetensors: the hub makes them on request.",
        )
    raise UnsupportedError(
        "holds no safetensors in its top folder", file=repo, remedy="Give a model's repository."
    )


def _check_disk(repo: str, listing: _Listing, names: list[str]) -> None:
    """Refuse to begin what the cache's disk cannot hold."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE)
    blobs = cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    needed = 0
    for name in names:
        file = listing.files[name]
        cached = isinstance(try_to_load_from_cache(repo, name, revision=listing.commit), str)
        if not cached and not (file.blob and (blobs / file.blob).exists()):
            needed += file.size
    standing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(standing).free
    if needed > free:
        raise IoError(
            f"fetching {repo} takes {_text_of(needed)}, and {_text_of(free)} are free on this disk",
            file=cache,
            remedy="Free some space, or set HF_HOME to a folder on a larger disk.",
        )


def _from_cache(repo: str, revision: str, reason: str) -> Path:
    """The snapshot that an earlier run left, if it is whole."""
    from huggingface_hub import constants, try_to_load_from_cache

    remedy = f"Fetch it once with the network on (`hf download {repo}`), or give a local folder."
    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(config, str):
        raise IoError(
            f"{repo}@{revision} is not in the cache {constants.HF_HUB_CACHE}, and {reason}",
            remedy=remedy,
        )
    folder = Path(config).parent
    index = folder / INDEX
    if index.exists():
        weights = _shards(index)
    else:
        weights = [path.name for path in folder.glob("*.safetensors")] or [SINGLE]
    missing = [name for name in weights if not (folder / name).exists()]
    if missing:
        raise IoError(
            f"{repo}@{revision} is not wholly in the cache ({missing[0]} is missing), and {reason}",
            file=folder,
            remedy=remedy,
        )
    return folder


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _refusal(error: Exception, repo: str, revision: str) -> PhiquantError | None:
    """The hub's own "no", in words; None if it said nothing, or that it is in trouble itself."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    for cause in causes_of(error):
        if isinstance(cause, errors.GatedRepoError):
            return IoError(
                f"{repo} is gated: its owner wants a licence to be accepted first",
                remedy=f"Accept it on {page} and log in with `hf auth login`.",
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return IoError(
                f"{repo} has no branch, tag or commit {revision!r}",
                remedy=f"{page}/tree/main lists them.",
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return IoError(
                f"there is no repository {repo} on {constants.ENDPOINT}, or it is private; and "
                "there is no local path of that name",
                remedy="Check the spelling; for a private one, log in with `hf auth login`.",
            )
        if isinstance(cause, errors.HfHubHTTPError):
            status = status_of(cause)
            if status in (401, 403):
                return IoError(
                    f"the hub refuses access to {repo} (HTTP status {status})",
                    remedy="Log in with a token that may read it: `hf auth login`.",
                )
            if status is not None and status < 500 and status != 429:
                return IoError(f"the hub answers HTTP status {status} for {repo}")
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error carries."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def unreachable(error: Exception) -> str | None:
    """Why the hub could not be asked; None if that is not what the error says."""
    from huggingface_hub import constants

    for cause in causes_of(error):
        status = status_of(cause)
        if status is not None:
            return f"{constants.ENDPOINT} answers HTTP status {status}"
        library = type(cause).__module__.partition(".")[0]
        if library in _HTTP_LIBRARIES or isinstance(cause, (ConnectionError, TimeoutError)):
            return f"{constants.ENDPOINT} cannot be reached ({first_line(cause)})"
        if isinstance(cause, (ValueError, KeyError, TypeError)):
            return f"what answers at {constants.ENDPOINT} is no hub (a proxy or a log-in page?)"
    return None


def _broken_off(error: Exception, repo: str) -> IoError:
    from huggingface_hub import constants

    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return IoError(
            f"the cache cannot be written: {error.strerror}",
            file=error.filename or constants.HF_HUB_CACHE,
        )
    return IoError(
        f"the download of {repo} broke off: {first_line(error.__cause__ or error)}",
        remedy="Run the same command again: files that have arrived are not fetched again.",
    )


def first_line(error: BaseException) -> str:
    """An error's first line, of bearable length."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")


def _text_of(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**9 else f"{size / 1e6:.1f} MB"


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Keep the hub's bars off the screen, unless they are wanted or the environment decides."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if shown or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
