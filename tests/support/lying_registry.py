"""An MLflow server that says what a test wants: sources, names, sizes and tags of one encoder, enc/1."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

RUN = "r" * 32


class LyingRegistry:
    """files: name -> content; sizes: what is announced instead of a file's own; sent: the files that were asked for."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.reset({}, {})

    def reset(self, files: dict[str, bytes], tags: dict[str, str]) -> None:
        self.files, self.tags, self.name = dict(files), dict(tags), "enc"
        self.sizes: dict[str, int] = {}
        self.versions: list[dict[str, Any]] = []
        self.sent: list[str] = []
        self.source = self.artifact_uri = "mlflow-artifacts:/enc"

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[LyingRegistry]:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self.rfile.read(length)
                body = registry.answer(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            do_POST = do_GET  # noqa: N815  (the name is that of http.server)

            def log_message(self, *words: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        registry = cls(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)

    def version(self) -> dict[str, Any]:
        times = {"creation_timestamp": 1, "last_updated_timestamp": 1}
        tags = [{"key": key, "value": value} for key, value in self.tags.items()]
        named = {"name": self.name, "version": "1", "source": self.source, "run_id": RUN, "status": "READY"}
        return {**named, **times, "current_stage": "None", "tags": tags}

    def answer(self, path: str) -> bytes:
        asked = urllib.parse.urlsplit(path)
        query = urllib.parse.parse_qs(asked.query)
        if "mlflow-artifacts/artifacts" in asked.path:
            return self._artifacts(asked.path, query)
        return b"OK" if "/health" in asked.path else json.dumps(self._said(asked.path)).encode()

    def _artifacts(self, path: str, query: dict[str, list[str]]) -> bytes:
        name = urllib.parse.unquote(path.rpartition("/artifacts/")[2]).removeprefix("enc/")
        if "path" not in query and not path.endswith("/artifacts"):
            self.sent.append(name)
            return self.files.get(name, b"owned")
        listed = query.get("path", [""])[0] in ("", "enc")
        sizes = {each: self.sizes.get(each, len(content)) for each, content in self.files.items()}
        files = [{"path": each, "is_dir": False, "file_size": size} for each, size in sizes.items()]
        return json.dumps({"files": files if listed else []}).encode()

    def _said(self, path: str) -> dict[str, Any]:
        version = self.version()
        model = {"name": self.name, "aliases": [], "latest_versions": [version], "creation_timestamp": 1}
        info = {"run_id": RUN, "run_uuid": RUN, "experiment_id": "0", "status": "FINISHED", "lifecycle_stage": "active"}
        said: dict[str, dict[str, Any]] = {
            "experiments/search": {"experiments": []},
            "runs/get": {"run": {"info": {**info, "artifact_uri": self.artifact_uri}, "data": {}}},
            "get-download-uri": {"artifact_uri": self.source},
            "model-versions/search": {"model_versions": self.versions or [version]},
            "model-versions/get": {"model_version": version},
            "registered-models/alias": {"model_version": version},
            "registered-models/search": {"registered_models": [model]},
            "registered-models/get": {"registered_model": model},
        }
        return next((values for part, values in said.items() if part in path), {})
