"""The part of the hub's HTTP interface that an upload needs, on this machine: what was sent is kept to be looked at."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_standin"


class Hub:
    """Its repositories: (type, name) -> path -> bytes, and what else was asked for."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[tuple[str, str], bool] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refuses = self.fails = False
        self.url = ""


@contextmanager
def hub_standin() -> Iterator[Hub]:
    """A hub that listens within the context."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, status: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts: list[bytes] = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def handle_any(self) -> None:
            sent, path = self.body(), unquote(self.path.partition("?")[0])
            hub.requests.append(f"{self.command} {path}")
            if not path.startswith("/upload/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid credentials"})
            elif hub.fails:
                self.answer(500, {"error": "Internal error"})
            elif path == "/api/whoami-v2":
                self.answer(200, {"type": "user", "name": "someone", "auth": {"accessToken": {"role": "write"}}})
            elif hub.refuses:
                self.answer(403, {"error": "You may not write here"})
            elif path == "/api/repos/create":
                self.create(json.loads(sent))
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif path.endswith("/preupload/main"):
                files = json.loads(sent)["files"]
                large = (".safetensors", ".parquet")
                modes = {f["path"]: "lfs" if f["path"].endswith(large) else "regular" for f in files}
                self.answer(
                    200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
                )
            elif path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(sent)["objects"]
                self.answer(200, {"transfer": "basic", "objects": [self.place(o) for o in objects]})
            elif path.startswith("/upload/"):
                assert hashlib.sha256(sent).hexdigest() == path.removeprefix("/upload/")
                hub.objects[path.removeprefix("/upload/")] = sent
                self.answer(200, {})
            elif "/commit/" in path:
                self.commit(path, [json.loads(line) for line in sent.splitlines()])
            elif path.startswith("/api/"):
                self.answer(200, {"id": "someone/x", "siblings": []})
            else:
                self.answer(404, {"error": f"no {path}"})

        do_GET = do_POST = do_PUT = handle_any

        def place(self, wanted: dict[str, Any]) -> dict[str, Any]:
            return {**wanted, "actions": {"upload": {"href": f"{hub.url}/upload/{wanted['oid']}", "header": {}}}}

        def create(self, asked: dict[str, Any]) -> None:
            name = f"{asked.get('organization', 'someone')}/{asked['name']}"
            key = (asked.get("type") or "model", name)
            hub.files.setdefault(key, {})
            hub.private.setdefault(key, asked.get("visibility") == "private")
            self.answer(200, {"url": f"{hub.url}/{'datasets/' if key[0] == 'dataset' else ''}{name}", "name": name})

        def commit(self, path: str, lines: list[dict[str, Any]]) -> None:
            kind, owner, name = path.removeprefix("/api/").split("/")[:3]
            files = hub.files[kind.removesuffix("s"), f"{owner}/{name}"]
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            where = f"{hub.url}/{'datasets/' if kind == 'datasets' else ''}{owner}/{name}"
            self.answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{where}/commit/{'0' * 40}"})

    return Handler
