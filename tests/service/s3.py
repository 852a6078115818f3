"""A server that speaks S3's protocol over HTTP, in a process of its own, and a way to it that can be cut off."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

BUCKET = "bucket"
MAY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


class Relay:
    """Passes connections on to a port, until it is away: those that were begun then end, and no other begins."""

    def __init__(self, to: int) -> None:
        self._to, self.port = to, 0
        self._open: set[socket.socket] = set()
        self._is_away = True
        self.back()

    def back(self) -> None:
        if not self._is_away:
            return
        self._is_away = False
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def away(self) -> None:
        self._is_away = True
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here = listener.accept()[0]
                there = socket.create_connection(("127.0.0.1", self._to))
                self._open |= {here, there}
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            self._open.discard(one)
            one.close()


@dataclass
class S3:
    """A store with one bucket, which looks at signatures.

    Attributes:
        client: botocore's, to look at what lies in the bucket; it does not go by the relay.
        environment: by which a process reaches it, with keys that may do everything there.
    """

    relay: Relay
    client: Any
    key: str
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.relay.port}",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def names(self, below: str) -> list[str]:
        """All that lies below a folder of the bucket."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{below}/").get("Contents", [])
        return [one["Key"].removeprefix(f"{below}/") for one in found]


@contextmanager
def s3_server() -> Iterator[S3]:
    """Inside, it runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as process:
        try:
            address, relay = f"http://127.0.0.1:{port}", Relay(port)
            _wait_for(address)
            yield _set_up(address, relay)
            relay.away()
        finally:
            process.kill()


def _wait_for(address: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/moto-api/data.json").close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


def _set_up(address: str, relay: Relay) -> S3:
    """Make a bucket, and a user who may use it; nobody else may from then on."""
    from botocore.session import Session

    def client(service: str, key: str, secret: str) -> Any:
        return Session().create_client(
            service, "us-east-1", endpoint_url=address, aws_access_key_id=key, aws_secret_access_key=secret
        )

    iam = client("iam", "anybody", "anything")
    iam.create_user(UserName="service")
    made = iam.create_access_key(UserName="service")["AccessKey"]
    iam.put_user_policy(UserName="service", PolicyName="may", PolicyDocument=json.dumps(MAY))
    asked = urllib.request.Request(f"{address}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    urllib.request.urlopen(asked).close()
    s3 = client("s3", made["AccessKeyId"], made["SecretAccessKey"])
    s3.create_bucket(Bucket=BUCKET)
    return S3(relay, s3, made["AccessKeyId"], made["SecretAccessKey"])
