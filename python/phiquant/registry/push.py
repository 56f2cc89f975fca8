"""Uploads a result to a hub, with a model card, in one commit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phiquant import _core
from phiquant.errors import ChangedError, IoError, PhiquantError, UsageError
from phiquant.hub import causes_of, first_line, is_hub_id, progress_bars, status_of, unreachable
from phiquant.registry.card import card_of
from phiquant.registry.changes import changes
from phiquant.registry.recording import record_verdict
from phiquant.registry.records import Model
from phiquant.targets.modelfile import find_license

CARD = "README.md"
_LOGIN = "Log in with a token that may write: `hf auth login`."


@dataclass(frozen=True)
class Pushed:
    """What was published.

    Attributes
    ----------
    repository : str
    revision : str
        The branch.
    commit, url : str
        Of the new commit.
    files : tuple of str
        Names in the repository.
    """

    repository: str
    revision: str
    commit: str
    url: str
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)


def push(
    path: Path,
    repository: str,
    *,
    model: Model | None = None,
    private: bool = False,
    revision: str | None = None,
    force: bool = False,
    progress: Callable[[int], None] = lambda count: None,
    bars: bool = False,
) -> Pushed:
    """Upload a file or folder, and publish it in one commit.

    The token is huggingface_hub's own: ``HF_TOKEN``, or that of ``hf auth login``.

    Parameters
    ----------
    path : Path
        A file, or a folder without links; hidden files stay here.
    repository : str
        ``owner/name``; made if there is none.
    model : Model, optional
        What is known of it: for the card, and to see that its files are as they were made.
    private : bool
        Whether a new repository is.
    revision : str, optional
        A branch, made if there is none; ``main`` by default.
    force : bool
        Also files that changed since they were made.
    progress : callable
        Gets the number of bytes of each piece that is read to see that it did not change.
    bars : bool
        Show the hub's progress bars on stderr.

    Raises
    ------
    phiquant.UsageError
        No name of a repository, a link, or nothing to push.
    phiquant.ChangedError
        Files are not as they were made.
    phiquant.IoError
        No token, no right to write, no network.
    """
    if not is_hub_id(repository) or "@" in repository:
        raise UsageError(
            f"'{repository}' is no repository",
            remedy="Write owner/name; --revision names a branch.",
        )
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise IoError("HF_HUB_OFFLINE keeps phiquant off the network", remedy="Unset it to push.")
    token = get_token()
    if token is None:
        raise IoError(f"there is no token for {constants.ENDPOINT}", remedy=_LOGIN)
    files = _files(path, model)
    if model is not None and not force:
        _check_unchanged(model, progress)
    branch = revision or "main"
    api = HfApi(library_name="phiquant", library_version=_core.version, token=token)
    try:
        with progress_bars(bars):
            api.create_repo(repository, private=private, exist_ok=True)
            if branch != "main":
                api.create_branch(repository, branch=branch, exist_ok=True)
            additions = dict[str, Any](files)
            for name, text in _companions(path, model, files).items():
                # Other results may stand in the repository, and their words with them.
                if not api.file_exists(repository, name, revision=branch):
                    additions[name] = text.encode()
            done = api.create_commit(
                repository,
                [CommitOperationAdd(name, content) for name, content in additions.items()],
                commit_message=f"Add {path.name}, made with phiquant {_core.version}",
                revision=branch,
            )
    except Exception as error:
        raise _typed(error, repository, branch, token) from None
    pushed = Pushed(repository, branch, done.oid, done.commit_url, tuple(sorted(additions)))
    record_verdict(path, "push", {"url": pushed.url} | pushed.to_json())
    return pushed


def _files(path: Path, model: Model | None) -> dict[str, Path]:
    """What to upload, by name in the repository."""
    if path.is_file():
        parts = [path.parent / file.name for file in model.files] if model else [path]
        return {part.name: part for part in parts}
    found = {}
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            file = Path(folder) / name
            if file.is_symlink() or not file.is_file():
                raise UsageError(
                    "is a link or no regular file, whose content might not be meant for the public",
                    file=file,
                    remedy="Put the file itself there, or take it out of the folder.",
                )
            found[file.relative_to(path).as_posix()] = file
    if not found:
        raise UsageError("there is nothing to push", file=path)
    return found


def _refuse(error: OSError) -> None:
    raise IoError(f"cannot be read: {error.strerror}", file=error.filename) from error


def _check_unchanged(model: Model, progress: Callable[[int], None]) -> None:
    found = changes(model, progress)
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise ChangedError(
            f"{found[0]}{more}",
            remedy="Convert again; or pass --force to publish it as it is.",
        )


def _companions(path: Path, model: Model | None, files: dict[str, Path]) -> dict[str, str]:
    """Card and licence, where the result has none of its own."""
    made = {}
    if CARD not in files:
        kind = model.target.partition(":")[0] if model else path.suffix.lstrip(".") or "folder"
        made[CARD] = card_of(model, path.stem if path.is_file() else path.name, kind)
    source = model.source_folder if model else None
    if source is not None and not any(name.upper().startswith("LICEN") for name in files):
        text = find_license(source)
        if text is not None:
            made["LICENSE"] = text
    return made


def _typed(error: Exception, repository: str, branch: str, token: str) -> PhiquantError:
    """What went wrong, in words; the token is in none of them."""
    from huggingface_hub import constants

    if isinstance(error, PhiquantError):
        return error
    statuses = [status for cause in causes_of(error) if (status := status_of(cause)) is not None]
    status = statuses[0] if statuses else None
    if status == 401:
        return IoError(f"{constants.ENDPOINT} does not know the token", remedy=_LOGIN)
    if status == 403:
        return IoError(f"the token may not write to {repository}", remedy=_LOGIN)
    if status == 404:
        return IoError(f"{constants.ENDPOINT} finds no {repository} with a branch '{branch}'")
    if status in (409, 412):
        return IoError(
            f"{repository} was changed by others meanwhile", remedy="Run the same command again."
        )
    reason = None if status is not None and status < 500 else unreachable(error)
    words = reason or f"{constants.ENDPOINT} refused it: {first_line(error)}"
    return IoError(
        f"{repository}: nothing was published: {words}".replace(token, "***"),
        remedy="Run the same command again: what has arrived is not sent again.",
    )
