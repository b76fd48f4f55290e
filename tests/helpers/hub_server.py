"""A stand-in for the Hugging Face hub on this machine: repositories, commits, branches, tokens.

It answers the requests of huggingface_hub for models as https://huggingface.co/.well-known/
openapi.json describes them. Files come with their commit, as those of less than 10 MB do.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

import huggingface_hub

READ, WRITE = "hf_read", "hf_write"


class HubServer:
    """An empty hub with an owner ``me``.

    Attributes:
        address (str): ``http://127.0.0.1:port``.
        repositories (dict[str, dict]): by name; ``private``, ``commits`` with the files of each,
            and ``branches`` with the commit of each.
        requests (list[str]): method and path of each request.
    """

    def __init__(self):
        self.repositories, self.requests = {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                path = self.path.partition("?")[0]
                outer.requests.append(f"{self.command} {path}")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = self.read_chunks()
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                status, headers, content = outer.respond(self.command, path, token, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def read_chunks(self):
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            do_GET = do_HEAD = do_POST = answer

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def respond(self, method, path, token, body):
        if token not in ("", READ, WRITE):
            return error(401, "", "Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            return answer({"errors": [], "warnings": []})
        writes = method == "POST"
        if writes and token != WRITE:
            return error(403 if token else 401, "", "You need a token that may write")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        found = re.fullmatch(r"/api/models/(\w+/[\w.-]+)(?:/(\w+)(?:/([^/]+))?)?", path)
        file = re.fullmatch(r"/(\w+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        name = (found or file)[1]
        repository = self.repositories.get(name)
        if repository is None or (repository["private"] and not token):
            return error(404 if token else 401, "RepoNotFound", "Repository not found")
        if found and found[2] == "preupload":
            files = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return answer({"files": [{"path": f["path"], **modes} for f in files]})
        if found and found[2] == "branch":
            repository["branches"].setdefault(found[3], repository["branches"]["main"])
            return answer({})
        if found and found[2] == "commit":
            return self._commit(name, found[3], body)
        revision = (found[3] or "main") if found else file[2]
        commit = repository["branches"].get(revision, revision)
        if commit not in repository["commits"]:
            return error(404, "RevisionNotFound", "Invalid rev id")
        files = repository["commits"][commit]
        if found:
            return answer(
                {"id": name, "sha": commit, "siblings": [{"rfilename": f} for f in files]}
            )
        if file[3] not in files:
            return error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        content = files[file[3]]
        digest = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{digest}"', "X-Repo-Commit": commit}, content

    def _create(self, request):
        name = f"{request.get('organization', 'me')}/{request['name']}"
        first = hashlib.sha1(name.encode()).hexdigest()
        is_new = name not in self.repositories
        if is_new:
            self.repositories[name] = {
                "private": request.get("visibility") == "private" or bool(request.get("private")),
                "commits": {first: {}},
                "branches": {"main": first},
            }
        return answer({"url": f"{self.address}/{name}", "name": name}, 200 if is_new else 409)

    def _commit(self, name, branch, body):
        repository = self.repositories[name]
        files = dict(repository["commits"][repository["branches"][branch]])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = hashlib.sha1(repr((repository["branches"][branch], files)).encode()).hexdigest()
        repository["commits"][commit] = files
        repository["branches"][branch] = commit
        return answer({"commitUrl": f"{self.address}/{name}/commit/{commit}", "commitOid": commit})


def answer(content, status=200):
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def error(status, code, message, headers=()):
    return status, {"X-Error-Code": code, "X-Error-Message": message, **dict(headers)}, b""


@contextmanager
def hub_server(cache):
    """Run a hub that huggingface_hub uses in this process, with a cache and without a token."""
    hub, constants = HubServer(), huggingface_hub.constants
    threading.Thread(target=hub._server.serve_forever, args=(0.01,), daemon=True).start()
    url = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    with (
        patch.object(constants, "ENDPOINT", hub.address),
        patch.object(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url),
        patch.object(constants, "HF_HUB_CACHE", str(cache)),
        patch.object(constants, "HF_HUB_OFFLINE", False),
        patch.object(constants, "HF_TOKEN_PATH", str(cache / "token")),
        patch.dict("os.environ", {"HF_TOKEN": ""}),
    ):
        yield hub
    hub._server.shutdown()
    hub._server.server_close()
