"""Puts a GGUF into Ollama's store: blobs named by their SHA-256, and a manifest that lists them.

The layout is that of Ollama 0.33 (manifest/ and server/create.go there); it has been the same since
0.1, but for keys that older versions put into the config and did not need.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phiquant import _core
from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.errors import ChangedError, IoError, PhiquantError, UnsupportedError, UsageError
from phiquant.recipes.mixes import CURRENT
from phiquant.registry import checksums
from phiquant.strict_json import read_json
from phiquant.targets.modelfile import Parts, eos_ids, find_license, parts_of

_REGISTRY, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_IMAGE = "application/vnd.ollama.image."

_NAME = re.compile(
    r"(?:(?P<namespace>\w[\w-]{0,79})/)?(?P<model>\w[\w.-]{0,79})(?::(?P<tag>\w[\w.-]{0,79}))?",
    re.ASCII,
)
_PIECE = 1 << 22
# Linux's request to share a file's blocks until one of the two is written to.
_FICLONE = 0x40049409


@dataclass(frozen=True)
class Stored:
    """What stands in Ollama's store.

    Attributes
    ----------
    name : str
        As ``ollama run`` takes it.
    manifest : Path
    blob : Path
        The weights.
    how : str
        How they came there: ``cloned`` or ``linked`` (no more disk is taken), ``copied``, or
        ``there already``.
    """

    name: str
    manifest: Path
    blob: Path
    how: str

    def to_json(self) -> dict[str, str]:
        """All of it as plain data."""
        return {
            "name": self.name,
            "manifest": str(self.manifest),
            "blob": str(self.blob),
            "how": self.how,
        }


def root() -> Path:
    """Ollama's store: ``OLLAMA_MODELS``, or ``~/.ollama/models``."""
    own = os.environ.get("OLLAMA_MODELS")
    return Path(own).absolute() if own else Path.home() / ".ollama" / "models"


def name_for(path: Path) -> str:
    """A name that Ollama takes, from a file's."""
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).lstrip("-.")[:80] or "model"


def put(
    gguf: Path,
    name: str,
    *,
    source: Path | None = None,
    crc32c: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> Stored:
    """Put a GGUF into Ollama's store, with chat template, stops and licence as in its Modelfile.

    The manifest comes last: until then Ollama sees nothing. A second time changes nothing.

    Parameters
    ----------
    gguf : Path
    name : str
        ``[namespace/]model[:tag]``.
    source : Path, optional
        The folder of the checkpoint that it was made from: ids of ends and licence are taken there.
    crc32c : str, optional
        What the file's checksum shall be.
    overwrite : bool
        Replace another model of that name.
    progress : callable
        Gets the number of bytes of each piece of the file that was read.

    Raises
    ------
    phiquant.UsageError
        No name for Ollama, or another model has it.
    phiquant.UnsupportedError
        No GGUF, or one of several parts.
    phiquant.ChangedError
        Another checksum, or the file changed while it was read.
    phiquant.IoError
        The store cannot be written.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(
            f"'{name}' is no name for Ollama",
            remedy="Write model, model:tag or namespace/model:tag, in letters, digits, _, - and .",
        )
    namespace, tag = match["namespace"] or _NAMESPACE, match["tag"] or _TAG
    store = root()
    manifest = store / "manifests" / _REGISTRY / namespace / match["model"] / tag
    shown = f"{match['namespace'] + '/' if match['namespace'] else ''}{match['model']}:{tag}"
    gguf = gguf.resolve()
    checkpoint = _open(gguf)
    digest = _digest(gguf, crc32c, progress)
    parts = _parts(checkpoint, source)
    small = [(kind, text.encode()) for kind, text in _texts(parts)]
    config = _json(_config(checkpoint))
    layers = [_layer(_IMAGE + "model", digest, gguf.stat().st_size)]
    layers += [_layer(_IMAGE + kind, _sha256(text), len(text)) for kind, text in small]
    listing = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _layer(_CONFIG, _sha256(config), len(config)),
            "layers": layers,
        }
    )
    try:
        _check_name(manifest, listing, shown, overwrite)
        blobs = store / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        manifest.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / f"sha256-{digest}"
        how = _place_file(gguf, blob)
        for text in (*(text for _, text in small), config):
            _place_bytes(text, blobs / f"sha256-{_sha256(text)}", blobs)
        _place_bytes(listing, manifest, blobs)
    except OSError as error:
        if isinstance(error, PhiquantError):
            raise
        raise IoError(
            f"Ollama's store cannot be written: {error.strerror}",
            file=error.filename or store,
            remedy="OLLAMA_MODELS names another one; a server of the system may have its own user.",
        ) from error
    return Stored(shown, manifest, blob, how)


def _open(gguf: Path) -> Checkpoint:
    checkpoint = open_checkpoint(gguf)
    if checkpoint.format != "gguf":
        raise UnsupportedError("is no GGUF, which is all that Ollama takes", file=gguf)
    if checkpoint.metadata.get("split.count", 0) not in (0, 1):
        raise UnsupportedError(
            "is one of several split files",
            file=gguf,
            remedy="Convert without --split-size: Ollama's store has one file a model.",
        )
    return checkpoint


def _digest(gguf: Path, crc32c: str | None, progress: Callable[[int], None]) -> str:
    """The file's SHA-256; refuses a file with another CRC-32C, or that changes meanwhile."""
    sha256, crc = hashlib.sha256(), 0
    with gguf.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        while piece := file.read(_PIECE):
            sha256.update(piece)
            crc = checksums.joined(crc, _core.crc32c(piece), len(piece))
            progress(len(piece))
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ChangedError("changed while it was read", file=gguf, remedy="Try again.")
    if crc32c is not None and f"{crc:08x}" != crc32c:
        raise ChangedError(
            f"changed since it was made: its crc32c was {crc32c}, and is {crc:08x}",
            file=gguf,
            remedy="Convert it again, or pass --force to take it as it is.",
        )
    return sha256.hexdigest()


def _parts(checkpoint: Checkpoint, source: Path | None) -> Parts:
    """Template, stops and licence, as ``--modelfile`` writes them."""
    metadata = checkpoint.metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    words = tokens if isinstance(tokens, list) else []
    ids: tuple[int, ...] = ()
    licence = None
    if source is not None:
        ids = eos_ids(
            _settings(source / "config.json"), _settings(source / "generation_config.json")
        )
        licence = find_license(source)
    own = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    template = metadata.get("tokenizer.chat_template")
    return parts_of(
        chat_template=template if isinstance(template, str) else None,
        eos=ids or [token for token in own if isinstance(token, int)],
        token_text=lambda token: str(words[token]) if 0 <= token < len(words) else None,
        license_text=licence,
    )


def _settings(path: Path) -> Mapping[str, object]:
    try:
        return read_json(path)
    except PhiquantError:
        return {}


def _texts(parts: Parts) -> list[tuple[str, str]]:
    texts = [("template", parts.template), ("license", parts.license_text)]
    found = [(kind, text) for kind, text in texts if text]
    if parts.stops:
        found.append(("params", _json({"stop": list(parts.stops)}).decode()))
    return found


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What ``ollama show`` tells; architecture and os are constants there, too."""
    family = str(checkpoint.metadata.get("general.architecture", "unknown"))
    number = checkpoint.metadata.get("general.file_type")
    names = {mix.ftype: name for name, mix in reversed(tuple(CURRENT.items()))}
    weights = sum(math.prod(entry.shape) for entry in checkpoint.entries.values())
    return {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": _count(weights),
        "file_type": names[number].upper() if number in names else "unknown",
        "architecture": "amd64",
        "os": "linux",
    }


def _count(number: int) -> str:
    for unit, size, digits in (("B", 10**9, 1), ("M", 10**6, 2)):
        if number >= size:
            return f"{number / size:.{digits if number % size else 0}f}{unit}"
    return f"{number / 1000:.0f}K" if number >= 1000 else str(number)


def _layer(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _check_name(manifest: Path, listing: bytes, shown: str, overwrite: bool) -> None:
    try:
        known = manifest.read_bytes()
    except FileNotFoundError:
        return
    if known != listing and not overwrite:
        raise UsageError(
            f"Ollama has another model named {shown}",
            remedy="Choose a name with --as, or pass --overwrite.",
        )


def _place_file(source: Path, blob: Path) -> str:
    """Give a file a second name in the store, or share its blocks, or copy it."""
    size = source.stat().st_size
    with suppress(FileNotFoundError):
        if blob.stat().st_size == size:
            return "there already"
    number, name = tempfile.mkstemp(prefix="phiquant-", dir=blob.parent)
    staged = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            how = "cloned" if _clone(source, file.fileno()) else ""
        if not how:
            staged.unlink()
            with suppress(OSError):  # another disk, or a file system without links
                os.link(source, staged)
                how = "linked"
        if not how:
            shutil.copyfile(source, staged)
            with staged.open("rb+") as file:
                os.fsync(file.fileno())
            how = "copied"
        if how != "linked":  # a link's mode is the source's own
            staged.chmod(0o644)
        staged.replace(blob)
    finally:
        staged.unlink(missing_ok=True)
    return how


def _clone(source: Path, target: int) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with source.open("rb") as file:
            fcntl.ioctl(target, _FICLONE, file.fileno())
    except OSError:  # a file system that cannot, or another one
        return False
    return True


def _place_bytes(text: bytes, path: Path, folder: Path) -> None:
    """Write a small file whole, by way of another name in ``folder``."""
    with suppress(OSError):
        if path.read_bytes() == text:
            return
    number, name = tempfile.mkstemp(prefix="phiquant-", dir=folder)
    staged = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staged.chmod(0o644)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
