"""A mirror of MNIST on this machine, with few and small images."""

import contextlib
import gzip
import hashlib
import http.server
import threading

from raw_files import GREY, idx_files

FILES = {f"{name}.gz": gzip.compress(data) for name, data in idx_files(GREY).items()}
MD5 = {name: hashlib.md5(data).hexdigest() for name, data in FILES.items()}


class Mirror:
    """A loopback HTTP server of `files`; keeps the list of requests.

    While `held`, half of each file is all that comes.
    """

    def __init__(self, files: dict[str, bytes], held: bool = False) -> None:
        requests = self.requests = []
        self.let_go = threading.Event()
        if not held:
            self.let_go.set()
        let_go = self.let_go

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> bytes:
                requests.append((self.command, self.path))
                body = files.get(self.path.removeprefix("/"))
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                return body or b""

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                body = self.answer()
                with contextlib.suppress(OSError):  # the client has given it up
                    self.wfile.write(body[: len(body) // 2])
                    let_go.wait(60)
                    self.wfile.write(body[len(body) // 2 :])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.let_go.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
