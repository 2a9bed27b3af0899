"""A folder behind a real HTTP server on loopback."""

import functools
import http.server
import threading
from pathlib import Path


class Served:
    """Serves a folder until it is closed; `requests` are those that came."""

    def __init__(self, folder: Path):
        self.requests = []
        served = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format, *args):
                served.requests.append(args)

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
