"""The registry's file: SQLite, one transaction a record, so that a kill loses nothing it kept."""

from __future__ import annotations

import difflib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from phiquant.errors import FormatError, IoError, PhiquantError, UnsupportedError, UsageError
from phiquant.registry.records import File, Model, NewModel, Verdict

#: Environment variable that names another file than the platform's own, or ``off``.
VARIABLE = "PHIQUANT_REGISTRY"

# In the file's header: whose it is (letters "phiq"), and the version of its tables.
_APPLICATION = 0x70686971
_SCHEMA = 1
_TABLES = (
    # Paths are bytes: a file system's names need not be text.
    "CREATE TABLE models (id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL, "
    "folder INTEGER NOT NULL, target TEXT NOT NULL, made REAL NOT NULL, facts TEXT NOT NULL)",
    "CREATE INDEX models_by_path ON models (path)",
    "CREATE TABLE files (model INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE, "
    "name BLOB NOT NULL, nbytes INTEGER NOT NULL, modified_ns INTEGER NOT NULL, "
    "crc32c TEXT NOT NULL, sha256 TEXT)",
    "CREATE INDEX files_by_model ON files (model)",
    "CREATE TABLE verdicts (model INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE, "
    "kind TEXT NOT NULL, made REAL NOT NULL, checksum TEXT, facts TEXT NOT NULL)",
    "CREATE INDEX verdicts_by_model ON verdicts (model)",
)


def place() -> Path | None:
    """Where the registry stands; None where it is off, or the user has no home.

    The file that ``PHIQUANT_REGISTRY`` names (``off``: none), or else ``phiquant/models.sqlite`` in
    the platform's place for such files: that of ``XDG_DATA_HOME``, ``~/.local/share``,
    ``~/Library/Application Support`` or ``%LOCALAPPDATA%``.
    """
    own = os.environ.get(VARIABLE)
    if own:
        return None if own.lower() == "off" else Path(own).absolute()
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = home / "Library" / "Application Support"
    else:
        folder = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
        if not folder.is_absolute():  # the specification says to take no notice of it
            folder = home / ".local" / "share"
    return folder / "phiquant" / "models.sqlite"


class Registry:
    """Records of results.

    Any number of processes may use it at once: each change is one transaction, under a lock that
    others wait for. A rollback journal, not a write-ahead log: that needs files beside the registry
    which a read-only folder or a network's file system cannot have.

    Parameters
    ----------
    path : Path, optional
        Its file; :func:`phiquant.registry.store.place` by default.
    patience : float
        Seconds to wait for other processes.

    Attributes
    ----------
    path : Path or None
        Without one there are no records, and none are kept.

    Raises
    ------
    phiquant.FormatError
        From any method: the file is damaged, or is no registry.
    phiquant.UnsupportedError
        It was made by a newer version.
    phiquant.IoError
        It cannot be read or written, or others hold it for too long.
    """

    def __init__(self, path: Path | None = None, *, patience: float = 5.0) -> None:
        self.path = place() if path is None else path
        self._patience = patience

    def add(self, models: Sequence[NewModel]) -> list[int]:
        """Record results, all or none; gives their ids. They are on the disk when this returns."""
        if self.path is None:
            return []
        self._make_folder(self.path)
        with self._transaction() as connection:
            return [_add(connection, model) for model in models]

    def judge(self, path: Path, kind: str, facts: Mapping[str, Any]) -> int | None:
        """Attach a verdict to the result that stands at a path.

        Parameters
        ----------
        path : Path
        kind : str
            ``verify``, ``eval`` or ``bench``.
        facts : mapping
            Anything that JSON holds.

        Returns
        -------
        int or None
            The result's id; None where nothing is known of that path.
        """
        model = self.at(path)
        if model is None:
            return None
        same = all(_looks_as(model.home / file.name, file) for file in model.files)
        row = (model.id, kind, time.time(), model.checksum if same else None, _json(facts))
        with self._transaction() as connection:
            connection.execute("INSERT INTO verdicts VALUES (?, ?, ?, ?, ?)", row)
        return model.id

    def models(self, *, replaced: bool = False) -> list[Model]:
        """What was recorded, the newest first.

        Parameters
        ----------
        replaced : bool
            Also results whose path another one has taken since.
        """
        if self.path is None or not self.path.exists():
            return []
        with self._open() as connection:
            found = _read(connection)
        return [model for model in found if replaced or not model.replaced]

    def at(self, path: Path) -> Model | None:
        """The result that stands at a path, by its links' target; any file of it will do."""
        whole = Path(os.path.realpath(path))
        for model in self.models():
            if whole == model.path or whole in (model.home / file.name for file in model.files):
                return model
        return None

    def find(self, name: str) -> Model:
        """The result of that id, path, name, or name without a suffix.

        Raises
        ------
        phiquant.UsageError
            There is none, or there are several.
        """
        known = self.models(replaced=True)
        for model in known:
            if name == str(model.id):
                return model
        current = [model for model in known if not model.replaced]
        whole = Path(os.path.realpath(name))
        for matches in (
            [model for model in current if model.path == whole],
            [model for model in current if model.name == name],
            [model for model in current if model.path.stem == name],
        ):
            if len(matches) == 1:
                return matches[0]
            if matches:
                ids = ", ".join(f"{model.id} ({model.path})" for model in matches)
                raise UsageError(f"there are several results named '{name}'", remedy=f"Say {ids}.")
        near = difflib.get_close_matches(name, sorted({model.name for model in current}), n=2)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(
            f"nothing named '{name}' was recorded",
            remedy=f"{hint}'phiquant models' lists what was.",
        )

    def forget(self, model: Model) -> None:
        """Remove a record with its verdicts. The files stay."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM models WHERE id = ?", (model.id,))

    def _make_folder(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise IoError(
                f"cannot be made: {error.strerror}",
                file=path.parent,
                remedy=f"Let {VARIABLE} name another file, or be off.",
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._open(create=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                if not _check(connection, self._file):
                    _make_tables(connection)
                yield connection
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @property
    def _file(self) -> Path:
        assert self.path is not None
        return self.path

    @contextmanager
    def _open(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        # Not "ro" to read: what a killed process left half-way is rolled back first, which writes.
        address = f"{self._file.as_uri()}?mode={'rwc' if create else 'rw'}"
        try:
            with closing(
                sqlite3.connect(address, uri=True, timeout=self._patience, isolation_level=None)
            ) as connection:
                # EXTRA: the folder is synced, too, so that a record outlives a loss of power.
                for setting in ("synchronous = EXTRA", "foreign_keys = ON"):
                    connection.execute(f"PRAGMA {setting}")
                connection.execute("BEGIN")
                _check(connection, self._file)
                connection.execute("COMMIT")
                yield connection
        except sqlite3.Error as error:
            raise _typed(error, self._file) from error


def _check(connection: sqlite3.Connection, path: Path) -> bool:
    """Refuse what is no sound registry of this version; says whether it has its tables yet.

    Within a transaction: nobody else changes the file meanwhile.
    """
    application, schema, tables = (
        int(connection.execute(query).fetchone()[0])
        for query in (
            "PRAGMA application_id",
            "PRAGMA user_version",
            "SELECT COUNT(*) FROM sqlite_master",
        )
    )
    if application != _APPLICATION and (tables or application or schema):
        raise FormatError(
            "is a database of another program, and no registry of phiquant",
            file=path,
            remedy=f"Let {VARIABLE} name another file.",
        )
    if schema > _SCHEMA:
        raise UnsupportedError(
            f"was made by a newer phiquant (schema {schema}; this one knows {_SCHEMA})",
            file=path,
            remedy=f"Update phiquant, or let {VARIABLE} name another file.",
        )
    sound = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    # SQLite takes a last page that is too short for one that ends in zeros.
    pages = connection.execute("SELECT * FROM pragma_page_count, pragma_page_size").fetchone()
    if sound == "ok" and tables and path.stat().st_size < pages[0] * pages[1]:
        sound = f"{path.stat().st_size} bytes of {pages[0] * pages[1]} are left"
    if sound != "ok":
        raise _damaged(path, sound.splitlines()[-1])
    return tables > 0


def _make_tables(connection: sqlite3.Connection) -> None:
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {_SCHEMA}")


def _add(connection: sqlite3.Connection, model: NewModel) -> int:
    row = (os.fsencode(model.path), model.folder, model.target, model.made, _json(model.facts))
    number = connection.execute(
        "INSERT INTO models (path, folder, target, made, facts) VALUES (?, ?, ?, ?, ?)", row
    ).lastrowid
    assert number is not None
    connection.executemany(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)",
        [
            (number, os.fsencode(f.name), f.nbytes, f.modified_ns, f.crc32c, f.sha256)
            for f in model.files
        ],
    )
    return number


def _read(connection: sqlite3.Connection) -> list[Model]:
    connection.execute("BEGIN")  # one state of all three tables
    if not connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
        return []
    files: dict[int, list[File]] = {}
    for number, name, *rest in connection.execute("SELECT * FROM files ORDER BY rowid"):
        files.setdefault(number, []).append(File(os.fsdecode(name), *rest))
    verdicts: dict[int, list[Verdict]] = {}
    for number, kind, made, checksum, facts in connection.execute(
        "SELECT * FROM verdicts ORDER BY rowid"
    ):
        verdict = Verdict(kind, made, checksum, json.loads(facts))
        verdicts.setdefault(number, []).append(verdict)
    found = []
    taken = set()
    for number, path, folder, target, made, facts in connection.execute(
        "SELECT id, path, folder, target, made, facts FROM models ORDER BY id DESC"
    ):
        found.append(
            Model(
                path=Path(os.fsdecode(path)),
                folder=bool(folder),
                target=target,
                made=made,
                facts=json.loads(facts),
                files=tuple(files.get(number, ())),
                id=number,
                replaced=path in taken,
                verdicts=tuple(verdicts.get(number, ())),
            )
        )
        taken.add(path)
    connection.execute("COMMIT")
    return found


def _looks_as(path: Path, file: File) -> bool:
    try:
        facts = path.stat()
    except OSError:
        return False
    return facts.st_size == file.nbytes and facts.st_mtime_ns == file.modified_ns


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, allow_nan=False)


def _typed(error: sqlite3.Error, path: Path) -> PhiquantError:
    words = str(error)
    if isinstance(error, sqlite3.OperationalError):
        remedy = f"See that it can be read and written, or let {VARIABLE} name another file."
        if "locked" in words or "busy" in words:
            remedy = "Another process holds it: try again when that is done."
        elif "full" in words:
            remedy = "Free some space."
        return IoError(f"the registry cannot be used: {words}", file=path, remedy=remedy)
    return _damaged(path, words)


def _damaged(path: Path, words: str) -> FormatError:
    return FormatError(
        f"the registry is damaged, or is none: {words}",
        file=path,
        remedy="Move it away, and records begin anew; 'sqlite3 FILE .recover' shows what is left.",
    )
