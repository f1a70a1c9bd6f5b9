"""
A local stand-in for the Hugging Face Hub: real HTTP, the protocol of uploads and downloads, files in memory.

Routes are those that `huggingface_hub` 2.4 takes with `HF_HUB_DISABLE_XET=1`: create, preupload, LFS batch, upload and
verify, commit, tree, resolve. A child process finds it by `HF_ENDPOINT`, which is read at import.
"""

import base64
import hashlib
import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


USER, TOKEN = "tester", "hf_standInTokenThatMustNotLeak"
LARGE = (".safetensors", ".bin", ".pt", ".pth")


class Repository:
    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.large: dict[str, str] = {}  # path to sha256
        self.commits: list[str] = []  # messages

    @property
    def sha(self):
        return hashlib.sha1(repr(self.commits).encode()).hexdigest()

    def entry(self, path):
        content = self.files[path]
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if path in self.large:
            entry["lfs"] = {"oid": self.large[path], "size": len(content), "pointerSize": 134}
        return entry


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubStandIn(ThreadingHTTPServer):
    """
    `failures` maps `(method, pattern of the path)` to what comes instead of an answer, one by one: a status, or
    `"cut"` for a connection that breaks in the middle of the request's body.
    """

    daemon_threads = True

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.failures: dict[tuple[str, str], list] = defaultdict(list)
        self.cards: list[str] = []  # sent for validation
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that was cut off, or has gone: not a matter for the test's output."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def route(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        for (method, pattern), answers in hub.failures.items():
            if method == self.command and re.search(pattern, path) and answers:
                answer = answers.pop(0)
                if answer == "cut":
                    self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
                    self.connection.close()
                    self.close_connection = True
                    return
                self.body()
                self.send(answer, {"error": "injected"})
                return
        body = self.body()
        if path.startswith("/api/") and not self.is_authorised(path):
            self.send(401, {"error": "Invalid credentials in Authorization header"})
            return
        for method, pattern, answer in ROUTES:
            if method in (self.command, "GET" if self.command == "HEAD" else "") and (
                match := re.fullmatch(pattern, path)
            ):
                with hub.lock:
                    answer(self, body, *match.groups())
                return
        self.send(404, {"error": f"no route {self.command} {path}"})

    do_GET = do_POST = do_PUT = do_HEAD = route

    def is_authorised(self, path):
        writes = self.command == "POST" and "validate" not in path
        return not writes or self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def send(self, status, answer=None, content=None, headers=()):
        content = json.dumps(answer).encode() if content is None else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ------------------------------------------------------------------ answers

    def create(self, body):
        wanted = json.loads(body)
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        exists = name in self.server.repositories
        self.server.repositories.setdefault(name, Repository())
        self.send(409 if exists else 200, {"url": f"{self.server.url}/{name}", "name": name, "id": "0" * 24})

    def validate(self, body):
        self.server.cards.append(json.loads(body)["content"])
        self.send(200, {"errors": [], "warnings": []})

    def preupload(self, body, name, revision):
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self.send(200, {"files": files, "commitOid": self.server.repositories[name].sha})

    def lfs_batch(self, body, name):
        objects = []
        for wanted in json.loads(body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.blobs:
                upload = f"{self.server.url}/_lfs/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": upload}, "verify": {"href": f"{self.server.url}/_verify"}}
            objects.append(answer)
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            self.send(400, {"error": "sha256 mismatch"})
            return
        self.server.blobs[oid] = body
        self.send(200, {})

    def lfs_verify(self, body):
        wanted = json.loads(body)
        self.send(200 if len(self.server.blobs.get(wanted["oid"], b"")) == wanted["size"] else 404, {})

    def commit(self, body, name, revision):
        repository = self.server.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.blobs[value["oid"]]
                repository.large[value["path"]] = value["oid"]
        url = f"{self.server.url}/{name}/commit/{repository.sha}"
        self.send(200, {"success": True, "commitOid": repository.sha, "commitUrl": url, "hookOutput": ""})

    def info(self, body, name, revision=None):
        if name not in self.server.repositories:
            self.send(404, {"error": "not found"}, headers={"X-Error-Code": "RepoNotFound"})
            return
        repository = self.server.repositories[name]
        siblings = [{"rfilename": path} for path in sorted(repository.files)]
        self.send(200, {"_id": "0", "id": name, "modelId": name, "sha": repository.sha, "private": False, "tags": [],
                        "downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip

    def tree(self, body, name, revision, folder=""):
        repository = self.server.repositories[name]
        prefix = f"{folder.strip('/')}/" if folder else ""
        self.send(200, [repository.entry(path) for path in sorted(repository.files) if path.startswith(prefix)])

    def resolve(self, body, name, revision, path):
        repository = self.server.repositories.get(name)
        if repository is None or path not in repository.files:
            code = "RepoNotFound" if repository is None else "EntryNotFound"
            headers = {"X-Error-Code": code} | ({"X-Repo-Commit": repository.sha} if repository else {})
            self.send(404, {"error": "not found"}, headers=headers)
            return
        entry = repository.entry(path)
        headers = {"X-Repo-Commit": repository.sha, "ETag": f'"{entry.get("lfs", entry)["oid"]}"'}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry["size"])}
        self.send(200, content=repository.files[path], headers=headers)


NAME = "([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/_lfs/([0-9a-f]{64})", Handler.lfs_upload),
    ("POST", "/_verify", Handler.lfs_verify),
    ("POST", f"/api/models/{NAME}/commit/(.+)", Handler.commit),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)(/.*)?", Handler.tree),
    ("GET", f"/api/models/{NAME}", Handler.info),
    ("GET", f"/api/models/{NAME}/revision/(.+)", Handler.info),
    ("GET", f"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]
