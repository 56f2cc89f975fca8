"""A small Hugging Face hub on loopback, with the part of its protocol that downloads speak."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

# As the hub does it: these are Git LFS objects, named by their SHA-256; the rest is named by Git.
_LFS = (".safetensors", ".bin", ".gguf", ".model")


def commit_of(*words: str) -> str:
    """A commit's name for a test: 40 hexadecimal digits."""
    return hashlib.sha1(" ".join(words).encode()).hexdigest()


def blob_of(name: str, content: bytes) -> str:
    """The ETag of a file, which is the name of its blob in the cache."""
    if name.endswith(_LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Files by commit; branches and tags by name.

    ``gated``: lists its files to everyone and gives them to nobody, as the hub does.
    """

    commits: dict[str, dict[str, bytes]]
    names: dict[str, str]
    gated: bool = False

    def resolve(self, revision: str) -> str | None:
        commit = self.names.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class LoopbackHub:
    """Serves ``repositories``; a context manager.

    Attributes
    ----------
    requests : list of (method, path)
        Everything that was asked for, in order.
    cut : dict of file name to bytes
        Break the connection after so many bytes of that file, once; later requests for it are
        answered with 503 until the entry is taken out.
    held : dict of file name to bytes
        Send so many bytes of that file and then nothing more until the hub closes.
    portal : bool
        Answer everything with a web page, as a hotel's network does.
    sending : threading.Event
        Set when a held file has got that far.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    portal: bool = False
    sending: threading.Event = field(default_factory=threading.Event)
    _closing: threading.Event = field(default_factory=threading.Event)

    def add(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Publish ``files`` as the newest commit of a branch (or as a tag); return the commit."""
        content = [hashlib.sha1(files[name]).hexdigest() for name in sorted(files)]
        commit = commit_of(repo, revision, *content)
        repository = self.repositories.setdefault(repo, Repository({}, {}))
        repository.commits[commit] = dict(files)
        repository.names[revision] = commit
        return commit

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for since the last call."""
        found = [
            re.sub(r".*/resolve/[^/]+/", "", path)
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        ]
        self.requests.clear()
        return found

    @property
    def endpoint(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> LoopbackHub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering: from now on connections are refused."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.hub._closing.is_set():  # a connection that was kept alive
            self.close_connection = True
            return
        raw = urlsplit(self.path).path
        self.hub.requests.append((self.command, unquote(raw)))
        # Split before it is unquoted: a revision's slashes are quoted, those of the path are not.
        if self.hub.portal:
            self._send(200, b"<html>Please log in to this hotel's network</html>", "text/html")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", raw):
            self._information(found[1], unquote(found[2] or "main"))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", raw):
            self._file(found[1], unquote(found[2]), unquote(found[3]))
        else:
            self._refuse(404, "NotFound")

    def _information(self, repo: str, revision: str) -> None:
        found = self._find(repo, revision)
        if found is None:
            return
        repository, commit = found
        siblings: list[dict[str, object]] = []
        for name, content in repository.commits[commit].items():
            # An LFS object's blobId is that of its pointer; its content is named in `lfs`.
            entry: dict[str, object] = {
                "rfilename": name,
                "size": len(content),
                "blobId": commit_of("pointer", name)
                if name.endswith(_LFS)
                else blob_of(name, content),
            }
            if name.endswith(_LFS):
                sha256 = blob_of(name, content)
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        facts = {
            "_id": commit_of(repo)[:24],
            "id": repo,
            "modelId": repo,
            "author": repo.split("/")[0],
            "sha": commit,
            "private": False,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }
        self._send(200, json.dumps(facts).encode(), "application/json")

    def _file(self, repo: str, revision: str, name: str) -> None:
        found = self._find(repo, revision)
        if found is None:
            return
        repository, commit = found
        if repository.gated:
            self._refuse(403, "GatedRepo")
            return
        content = repository.commits[commit].get(name)
        if content is None:
            self._refuse(404, "EntryNotFound")
            return
        begin = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            begin = int(asked[1])
        if self.hub.cut.get(name) == 0 and self.command == "GET":
            self._refuse(503, "Unavailable")
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{blob_of(name, content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self._content(name, content[begin:])

    def _content(self, name: str, content: bytes) -> None:
        if name in self.hub.cut:
            content, self.hub.cut[name] = content[: self.hub.cut[name]], 0
            self.close_connection = True
        elif name in self.hub.held:
            self.wfile.write(content[: self.hub.held[name]])
            self.wfile.flush()
            self.hub.sending.set()
            self.hub._closing.wait()
            self.close_connection = True
            return
        self.wfile.write(content)

    def _find(self, repo: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(repo)
        if repository is None:
            self._refuse(404, "RepoNotFound")
            return None
        commit = repository.resolve(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return None
        return repository, commit

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, json.dumps({"error": code}).encode(), "application/json", code)

    def _send(self, status: int, body: bytes, kind: str, code: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if code is not None:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
