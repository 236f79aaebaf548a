"""A Hugging Face hub on this machine: the calls of its HTTP interface that an upload and a download of files need.

https://huggingface.co/docs/hub/api, and the batch interface of Git LFS. Files of weights are stored by LFS, under their
SHA-256; others in the commit, under their Git hash.
"""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import yaml

WRITE, READ = "hf_write", "hf_read"  # tokens
LICENSES = ("mit", "apache-2.0")


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # files by commit, the newest last

    def commit(self, files: dict[str, bytes]) -> str:
        """Add files. Returns the name of the commit."""
        name = f"{len(self.commits) + 1:040x}"
        self.commits[name] = {**self.newest, **files}
        return name

    @property
    def newest(self) -> dict[str, bytes]:
        return next(reversed(self.commits.values()), {})


class Hub(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}  # by SHA-256
        self.requests: list[tuple[str, str]] = []  # method and path

    def publish(self, name: str, **kind: bool) -> Repository:
        """Create a repository."""
        self.repositories[name] = Repository(**kind)
        return self.repositories[name]

    @property
    def downloads(self) -> list[str]:
        """The files that were sent."""
        return [path for method, path in self.requests if method == "GET" and "/resolve/" in path]


@contextmanager
def running_hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


class Refused(Exception):
    """Status, X-Error-Code, message."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        self.content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        try:
            status, headers, body = self.route(path.strip("/").split("/"))
        except Refused as refusal:
            status, code, message = refusal.args
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            body = json.dumps({"error": message}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *_) -> None:
        pass

    def route(self, parts: list[str]) -> tuple[int, dict[str, str], bytes]:
        match self.command, parts:
            case "POST", ["api", "repos", "create"]:
                return self.create()
            case "POST", ["api", "validate-yaml"]:
                return self.validate()
            case "POST", ["api", "models", owner, name, "preupload", "main"]:
                self.repository(owner, name, write=True)
                modes = [(file["path"], file["path"].endswith(".safetensors")) for file in self.json()["files"]]
                return _json({"files": [{"path": path, "uploadMode": "lfs" if large else "regular",
                                         "shouldIgnore": False, "oid": None} for path, large in modes]})  # fmt: skip
            case "POST", [_, _, "info", "lfs", "objects", "batch"]:
                objects = self.json()["objects"]
                upload = f"{self.server.url}/upload/"
                actions = [{**each, "actions": {"upload": {"href": upload + each["oid"]}}} for each in objects]
                return _json({"transfer": "basic", "objects": actions})
            case "PUT", ["upload", sha256]:
                assert hashlib.sha256(self.content).hexdigest() == sha256
                self.server.large_files[sha256] = self.content
                return _json({})
            case "POST", ["api", "models", owner, name, "commit", "main"]:
                return self.commit(owner, name)
            case "GET", ["api", "models", owner, name]:
                repository = self.repository(owner, name)
                return _json({"id": f"{owner}/{name}", "private": repository.private, "siblings": []})
            case "GET", ["api", "models", owner, name, "tree", revision]:
                _, files = self.files(owner, name, revision)
                return _json([{"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                              for path, content in files.items()])  # fmt: skip
            case "HEAD" | "GET", [owner, name, "resolve", revision, *path]:
                return self.resolve(owner, name, revision, "/".join(path))
        raise Refused(404, None, f"no such page: {self.command} {self.path}")

    def json(self):
        return json.loads(self.content)

    def repository(self, owner: str, name: str, *, write: bool = False) -> Repository:
        repository = self.server.repositories.get(f"{owner}/{name}")
        if repository is None or (repository.private and self.token not in (WRITE, READ)):
            raise Refused(401 if self.token == "" else 404, "RepoNotFound", "Repository not found")
        if write and self.token != WRITE:
            raise Refused(403, None, f"You don't have the rights to write to {owner}/{name}")
        return repository

    def files(self, owner: str, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self.repository(owner, name)
        if repository.gated and self.token == "":
            raise Refused(401, "GatedRepo", f"Access to model {owner}/{name} is restricted.")
        if revision == "main":
            return next(reversed(repository.commits.items()))
        if revision not in repository.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return revision, repository.commits[revision]

    def create(self) -> tuple[int, dict[str, str], bytes]:
        asked = self.json()
        if self.token not in (WRITE, READ):
            raise Refused(401, None, "Invalid username or password.")
        if self.token == READ or asked["organization"] != "user":
            raise Refused(403, None, f"You don't have the rights to create a model under {asked['organization']}")
        name = f"user/{asked['name']}"
        private = asked.get("private") or asked.get("visibility") == "private"
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, Repository(private=private))
        return _json({"url": f"{self.server.url}/{name}"}, status)

    def validate(self) -> tuple[int, dict[str, str], bytes]:
        front_matter = yaml.safe_load(self.json()["content"].split("---\n")[1])
        if front_matter.get("license", "mit") not in LICENSES:
            message = f'"license" must be one of [{", ".join(LICENSES)}]'
            return _json({"error": message, "errors": [{"message": message}], "warnings": []}, 400)
        return _json({"errors": [], "warnings": []})

    def commit(self, owner: str, name: str) -> tuple[int, dict[str, str], bytes]:
        files = {}
        for line in self.content.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.server.large_files[entry["value"]["oid"]]
        commit = self.repository(owner, name, write=True).commit(files)
        return _json({"commitUrl": f"{self.server.url}/{owner}/{name}/commit/{commit}", "commitOid": commit})

    def resolve(self, owner: str, name: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        commit, files = self.files(owner, name, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content = files[path]
        if path.endswith(".safetensors"):
            etag = hashlib.sha256(content).hexdigest()
        else:
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}, content


def _json(value: object, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
