"""An in-memory Google Cloud Storage of one bucket, with the part of its JSON API that is needed.

Clients in other processes find it through environment variables. It has CRC32C checksums,
generations and prefixes, but no permissions, and lists everything in one page.
"""

import base64
import contextlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator

BUCKET = "bucket"


def crc32c(data: bytes) -> str:
    """Return the CRC32C (Castagnoli) of bytes in the format of GCS: big-endian, in base64."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return base64.b64encode((value ^ 0xFFFFFFFF).to_bytes(4, "big")).decode()


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection; the objects are the server's."""

    protocol_version = "HTTP/1.1"

    def handle(self):
        """Ignore clients that were killed."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_):
        """Print nothing."""

    def _answer(self, status=200, body=b"", headers=()):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _request(self):
        """Return (parts of the path, query); names of objects may have quoted slashes."""
        url = urllib.parse.urlsplit(self.path)
        query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
        path = url.path.strip("/").removeprefix("download/")
        return [urllib.parse.unquote(part) for part in path.split("/")], query

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _missing(self, what):
        self._answer(404, {"error": {"code": 404, "message": f"No such {what}"}})

    def _store(self, name, data, query):
        objects = self.server.objects
        wanted = query.get("ifGenerationMatch")
        there = objects.get(name)
        if wanted is not None and wanted != ("0" if there is None else there["generation"]):
            self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        self.server.generation += 1
        objects[name] = {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "size": str(len(data)),
            "generation": str(self.server.generation),
            "metageneration": "1",
            "crc32c": crc32c(data),
            "contentType": "application/octet-stream",
            "timeCreated": now,
            "updated": now,
            "data": data,
        }
        self._answer(200, _public(objects[name]))

    def do_POST(self):
        parts, query = self._request()
        body = self._body()
        if parts[-2] != BUCKET:
            self._missing("bucket")
        elif query.get("uploadType") == "media":
            self._store(query["name"], body, query)
        elif query.get("uploadType") == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1]
            _, meta, media, *_ = body.split(b"--" + boundary.encode())
            meta = json.loads(meta.partition(b"{")[2].join((b"{", b"")).strip() or b"{}")
            media = re.split(b"\r?\n\r?\n", media, maxsplit=1)[1]
            self._store(meta["name"], media.removesuffix(b"\n").removesuffix(b"\r"), query)
        elif "session" in query:
            self._go_on(query["session"], body)
        elif query.get("uploadType") == "resumable":
            session = str(len(self.server.sessions))
            self.server.sessions[session] = (query | json.loads(body or b"{}"), b"")
            address = f"http://{self.headers['Host']}/upload/storage/v1/b/{BUCKET}/o"
            self._answer(200, b"", {"Location": f"{address}?session={session}"})
        else:
            self._answer(501, {"error": {"code": 501, "message": "not in this fake"}})

    def _go_on(self, session, body):
        """Continue an upload; the last part has the total size."""
        query, data = self.server.sessions[session]
        data += body
        if self.headers["Content-Range"].endswith("/*"):
            self.server.sessions[session] = query, data
            self._answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
        else:
            self._store(query["name"], data, query)

    do_PUT = do_POST

    def do_GET(self):
        parts, query = self._request()  # storage v1 b BUCKET [o [NAME]]
        if parts[3:4] != [BUCKET]:
            self._missing("bucket")
        elif len(parts) == 4:
            self._answer(200, {"kind": "storage#bucket", "name": BUCKET, "location": "US"})
        elif len(parts) == 5:
            self._list(query)
        elif (there := self.server.objects.get(parts[5])) is None:
            self._missing("object")
        elif query.get("alt") == "media":
            self._read(there)
        else:
            self._answer(200, _public(there))

    do_HEAD = do_GET

    def _read(self, there):
        data, status = there["data"], 200
        headers = {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": there["generation"],
            "x-goog-hash": f"crc32c={there['crc32c']}",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, size = int(asked[1]), len(data)
            stop = min(int(asked[2]) + 1 if asked[2] else size, size)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            data, status = data[start:stop], 206
        self._answer(status, data, headers)

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name, there in sorted(self.server.objects.items()):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            inner, slash, _ = name[len(prefix) :].partition(delimiter or "\0")
            if slash:
                prefixes.add(prefix + inner + slash)
            else:
                items.append(_public(there))
        self._answer(200, {"items": items, "prefixes": sorted(prefixes)})

    def do_DELETE(self):
        parts, _ = self._request()
        if self.server.objects.pop(parts[5], None) is None:
            self._missing("object")
        else:
            self._answer(204)


def _public(there):
    return {name: value for name, value in there.items() if name != "data"}


@contextlib.contextmanager
def serve() -> Iterator[tuple[dict[str, dict], dict[str, str]]]:
    """Serve while the context lasts.

    Yields:
      (objects by name, with their bytes in 'data'; environment for processes that use the server)
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.objects, server.sessions, server.generation = {}, {}, 0
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    environment = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        # Otherwise clients look for credentials on the network, and ask for the type of bucket.
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "GOOGLE_CLOUD_PROJECT": "project",
    }
    try:
        yield server.objects, environment
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
