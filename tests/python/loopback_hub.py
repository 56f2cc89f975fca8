"""A small Hugging Face hub on loopback: what downloads speak of its protocol, and LFS uploads."""

from __future__ import annotations

import base64
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
    ``messages``: of commits that were uploaded.
    """

    commits: dict[str, dict[str, bytes]]
    names: dict[str, str]
    gated: bool = False
    private: bool = False
    messages: list[str] = field(default_factory=list)

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
    writers : dict of token to the owner whose repositories it may write
    objects : dict of SHA-256 to bytes
        LFS objects that were uploaded.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    portal: bool = False
    sending: threading.Event = field(default_factory=threading.Event)
    writers: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
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


def _mode(file: dict[str, str]) -> dict[str, object]:
    """How a file shall be uploaded: by its name, or because its beginning is no text."""
    try:
        base64.b64decode(file["sample"]).decode()
        text = not file["path"].endswith(_LFS)
    except UnicodeDecodeError:
        text = False
    mode = "regular" if text else "lfs"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

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

    def _write(self) -> None:
        raw = urlsplit(self.path).path
        body = self._body()
        self.hub.requests.append((self.command, unquote(raw)))
        if found := re.fullmatch(r"/objects/([0-9a-f]{64})", raw):  # its address is its own secret
            if hashlib.sha256(body).hexdigest() != found[1]:
                self._refuse(400, "BadDigest")
                return
            self.hub.objects[found[1]] = body
            self._send(200, b"", "text/plain")
            return
        owner = self.hub.writers.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if owner is None:
            self._refuse(401, "Unauthorized")
        elif raw == "/api/repos/create":
            self._create(json.loads(body), owner)
        elif raw == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(
            r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?"
            r"/(branch|preupload|commit|info/lfs/objects/batch)(?:/([^/]+))?",
            raw,
        ):
            repository = self.hub.repositories.get(found[1])
            if not found[1].startswith(f"{owner}/"):
                self._refuse(403, "Forbidden")
            elif repository is None:
                self._refuse(404, "RepoNotFound")
            elif found[2] == "branch":
                self._branch(repository, unquote(found[3]))
            elif found[2] == "preupload":
                self._json({"files": [_mode(file) for file in json.loads(body)["files"]]})
            elif found[2] == "commit":
                self._commit(found[1], repository, unquote(found[3]), body)
            else:
                self._json({"transfer": "basic", "objects": self._batch(json.loads(body))})
        else:
            self._refuse(404, "NotFound")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _create(self, wish: dict[str, object], owner: str) -> None:
        repo = f"{wish['organization']}/{wish['name']}"
        if wish["organization"] != owner:
            self._refuse(403, "Forbidden")
        elif repo in self.hub.repositories:
            self._refuse(409, "RepoExists", url=f"{self.hub.endpoint}/{repo}")
        else:
            private = wish.get("private") is True or wish.get("visibility") == "private"
            commit = commit_of(repo, "initial commit")
            self.hub.repositories[repo] = Repository(
                {commit: {}}, {"main": commit}, private=private
            )
            self._json({"url": f"{self.hub.endpoint}/{repo}", "name": repo})

    def _branch(self, repository: Repository, name: str) -> None:
        if name in repository.names:
            self._refuse(409, "BranchExists")
        else:
            repository.names[name] = repository.names["main"]
            self._json({})

    def _batch(self, wish: dict[str, list[dict[str, object]]]) -> list[dict[str, object]]:
        answers = []
        for one in wish["objects"]:
            answer: dict[str, object] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.objects:
                href = f"{self.hub.endpoint}/objects/{one['oid']}"
                answer["actions"] = {"upload": {"href": href}}
            answers.append(answer)
        return answers

    def _commit(self, repo: str, repository: Repository, branch: str, body: bytes) -> None:
        if branch not in repository.names:
            self._refuse(404, "RevisionNotFound")
            return
        parent = repository.names[branch]
        files = dict(repository.commits[parent])
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile", line
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = commit_of(
            parent, *(hashlib.sha1(files[name]).hexdigest() for name in sorted(files))
        )
        repository.commits[commit] = files
        repository.names[branch] = commit
        url = f"{self.hub.endpoint}/{repo}/commit/{commit}"
        self._json({"commitUrl": url, "commitOid": commit, "success": True})

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

    def _refuse(self, status: int, code: str, **more: str) -> None:
        self._send(status, json.dumps({"error": code} | more).encode(), "application/json", code)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str, code: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if code is not None:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
