"""A server on this machine that fails on demand: drops connections, cuts bodies short, says 500."""

import contextlib
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DROP, CUT, CUT_UNTOLD, STALL = "drop", "cut", "cut without a length", "stall"


class FailingServer:
    """Serves files from memory.

    Args:
        files (dict[str, bytes]): content by path, ``"/a.jpg"``.

    Attributes:
        address (str): ``http://127.0.0.1:port``.
        failures (dict[str, list]): what happens to the next requests of a path, one after the
            other: a status, or one of the constants of this module.
        requests (list[str]): the paths that were asked for.
    """

    def __init__(self, files):
        self.files, self.failures, self.requests = files, {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append(self.path)
                self.close_connection = True
                failure = outer.failures.get(self.path, [])
                outer.answer(self, failure.pop(0) if failure else None)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, handler, failure):
        content = self.files.get(handler.path)
        if failure == DROP:  # with a reset
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            handler.connection.close()
            return
        if failure == STALL:
            time.sleep(5)
            return
        if isinstance(failure, int) or content is None:
            handler.send_response(failure or 404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(200)
        if failure != CUT_UNTOLD:
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        cut = failure in (CUT, CUT_UNTOLD)
        with contextlib.suppress(OSError):
            handler.wfile.write(content[: len(content) // 2] if cut else content)

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
