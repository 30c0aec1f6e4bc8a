"""Web servers that answer with another address: a mirror is followed, the inside of our own network is not asked."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from yarl import URL

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shard_set.cache import ShardCache
from cardialign.data_shards.shard_set.redirects import leads_inwards
from cardialign.data_shards.shard_set.shard_set import ShardSet


class _Server(http.server.ThreadingHTTPServer):
    """A file server over a folder that sends whoever asks below /moved/ on to `elsewhere`; `asked`: every path."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.elsewhere, self.asked = folder, "", list[str]()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: _Server

    def __init__(self, request, address, server) -> None:
        super().__init__(request, address, server, directory=str(server.folder))

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if not self.path.startswith("/moved/"):
            return super().do_GET()
        self.send_response(302)
        self.send_header("Location", self.server.elsewhere + self.path.removeprefix("/moved"))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[_Server]:
    server = _Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_set_that_moved_on_its_server_is_read(small_set: ShardSet, tmp_path: Path) -> None:
    with served(small_set.path) as server:
        server.elsewhere = server.url
        found = ShardSet.open(f"{server.url}/moved", ShardCache(tmp_path / "cache", 1 << 30))
        assert found.read_payload(3) == small_set.read_payload(3)
    assert "/moved/manifest.json" in server.asked and "/manifest.json" in server.asked


def test_a_server_that_sends_us_to_a_service_of_this_machine_is_refused_and_the_service_not_asked(
    small_set: ShardSet, tmp_path: Path
) -> None:
    with served(small_set.path) as server, served(small_set.path) as inside:
        server.elsewhere = inside.url
        with pytest.raises(DataError, match=f"{server.url} sends us on to {inside.url}"):
            ShardSet.open(f"{server.url}/moved", ShardCache(tmp_path / "cache", 1 << 30))
        assert inside.asked == []
        assert server.asked == ["/moved/manifest.json"]  # no address becomes right by asking again


@pytest.mark.parametrize(
    ("server", "target", "inwards"),
    [
        ("https://8.8.8.8/set", "https://1.1.1.1/signed?x=1", False),  # a store behind a data host
        ("http://8.8.8.8/set", "https://8.8.8.8/set", False),
        ("https://8.8.8.8/set", "http://169.254.169.254/latest/meta-data", True),
        ("https://8.8.8.8/set", "http://127.0.0.1:8265/api", True),
        ("https://8.8.8.8/set", "http://[::ffff:127.0.0.1]/", True),
        ("https://8.8.8.8/set", "http://[::1]/", True),
        ("https://8.8.8.8/set", "http://[fd00:ec2::254]/latest", True),
        ("https://8.8.8.8/set", "http://10.0.0.5/", True),
        ("https://8.8.8.8/set", "http://0.0.0.0:6379/", True),
        ("http://10.0.0.4/set", "http://10.0.0.5:9000/bucket", False),  # a store of one's own network
        ("http://10.0.0.4/set", "https://8.8.8.8/set", False),
        ("http://10.0.0.4/set", "http://169.254.169.254/", True),
        ("http://127.0.0.1:9000/set", "http://127.0.0.1:9000/other", False),
        ("http://127.0.0.1:9000/set", "http://127.0.0.1:6379/", True),
    ],
)
def test_what_lies_nearer_to_us_than_the_server_is_inwards(server: str, target: str, inwards: bool) -> None:
    assert asyncio.run(leads_inwards(URL(server), URL(target))) is inwards
