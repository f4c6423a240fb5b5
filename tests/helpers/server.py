"""A server of its own process, asked with the standard library."""

import http.client
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import urlencode


class Server:
    """Where it listens, and its process."""

    def __init__(self, process, port, log):
        self.process, self.port, self.log = process, port, log

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def raw(self, method, path, body=None, headers=()):
        """(status, body) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def get(self, path, **query):
        status, body = self.raw("GET", f"{path}?{urlencode(query)}" if query else path)
        return status, json.loads(body)

    def post(self, path, value):
        body = json.dumps(value).encode()
        status, answer = self.raw("POST", path, body, {"content-type": "application/json"})
        return status, json.loads(answer)

    def metric(self, name):
        """The value of a metric line that begins with `name`."""
        text = self.raw("GET", "/metrics")[1].decode()
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE).group(1))


@contextmanager
def serving(*arguments, log):
    """Starts `python -m crops_jax.serve` on a free port; ends it at the end, if a test has not."""
    command = [sys.executable, "-u", "-m", "crops_jax.serve", *map(str, arguments), "--port", "0"]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, env=os.environ)
    try:
        for line in process.stdout:
            if found := re.search(rb"http://127\.0\.0\.1:(\d+)/", line):
                break
        else:
            raise AssertionError(f"the server ended with {process.wait()}: {log.read_text()}")
        yield Server(process, int(found.group(1)), log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
