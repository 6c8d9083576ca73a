"""A stand-in for the Hugging Face Hub: the part of its HTTP interface that uploads and downloads use, in memory."""

import base64
import hashlib
import json
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".onnx", ".pt")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        hub, path, body = self.server, unquote(urlsplit(self.path).path), self.body()
        hub.requests.append((self.command, path, self.headers.get("Authorization")))
        if path == "/api/repos/create":
            repo = "/".join(filter(None, [body.get("organization"), body["name"]]))
            hub.repos.setdefault(repo, {})
            hub.private[repo] = body.get("visibility") == "private"
            self.reply({"url": f"{hub.endpoint}/{repo}"})
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
                for file in body["files"]
            ]
            self.reply({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{wanted['oid']}"}}}
                for wanted in body["objects"]
            ]
            self.reply({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            self.commit(match[1], match[2], body)
        else:
            self.reply({"error": path}, 404)

    def do_PUT(self):
        content, oid = self.raw(), self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self.reply({})

    def commit(self, repo, revision, lines):
        hub = self.server
        if hub.refuses:
            return self.reply({"error": "no"}, 403)
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
        hub.repos[repo].update(files)
        hub.commits.append((repo, revision, sorted(files)))
        return self.reply(
            {"success": True, "commitOid": hub.sha, "commitUrl": f"{hub.endpoint}/{repo}/commit/{hub.sha}"}
        )

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+|/tree/.+)?", path)
        files = self.server.repos.get((file or info or [None, None])[1], {})
        if file and file[2] in files:
            content = files[file[2]]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.reply(content, headers={"ETag": etag, "X-Repo-Commit": self.server.sha})
        elif info and files and (info[2] or "").startswith("/tree"):
            self.reply([{"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40} for name in files])
        elif info and files:
            siblings = [{"rfilename": name} for name in files]
            self.reply({"id": info[1], "sha": self.server.sha, "siblings": siblings})
        else:
            self.reply({"error": "not found"}, 404, headers={"X-Error-Code": "EntryNotFound"})

    def raw(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def body(self):
        lines = [json.loads(line) for line in self.raw().splitlines() if line]
        return lines if "ndjson" in self.headers.get("Content-Type", "") else lines[0]

    def reply(self, content, status=200, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub_server(home):
    """Run a Hub; ``.environment`` makes a process use it, with its caches under ``home``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.endpoint, server.sha, server.refuses = f"http://127.0.0.1:{server.server_port}", "0123456789" * 4, False
    server.repos, server.private, server.objects, server.commits, server.requests = {}, {}, {}, [], []
    server.environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_test"}
    server.environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
