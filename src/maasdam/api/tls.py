"""A certificate and its key: checked, offered to HTTP and gRPC, and taken anew when the files are. Knows TLS; never HTTP.

files -> TlsPair -> context (HTTP), credentials (gRPC)
           \\- `follow`, once a second: a pair that was renewed serves the next handshakes, one that is wrong does not
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from pathlib import Path
from typing import Any

from maasdam.errors import InvalidInput
from maasdam.settings import Settings

log = logging.getLogger("maasdam.api")

HANDSHAKE_SECONDS = 10.0
"""A client that has not finished its handshake by then is cut off."""
FOLLOW_SECONDS = 1.0
PLAIN = b"this port speaks HTTPS; use https:// in the address\n"
TOLD = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(PLAIN)
) + PLAIN


class TlsPair:
    """One pair of files."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Reads and checks them. Raises InvalidInput, saying which is wrong and how."""
        self.path, self._key = certificate.absolute(), key.absolute()
        self._state = self._refused = self._seen()
        self.context, self._pair = self._loaded()
        self._given = self._pair

    @classmethod
    def of(cls, settings: Settings) -> TlsPair | None:
        """The one that is set; None where none is. Raises InvalidInput."""
        if not settings.tls_cert and not settings.tls_key:
            return None
        if not settings.tls_cert or not settings.tls_key:
            missing = "tls_key (--tls-key)" if settings.tls_cert else "tls_cert (--tls-cert)"
            raise InvalidInput(f"a certificate and its key go together: set {missing} too")
        return cls(Path(settings.tls_cert), Path(settings.tls_key))

    def credentials(self) -> Any:
        """For a gRPC server, whose next handshakes have what was renewed."""
        import grpc

        def configuration() -> Any:
            return grpc.ssl_server_certificate_configuration([self._pair])

        def fetched() -> Any:
            if self._given is self._pair:
                return None  # as it was
            self._given = self._pair
            return configuration()

        return grpc.dynamic_ssl_server_credentials(configuration(), fetched)

    async def follow(self) -> None:
        """Take what is renewed. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            self.look()

    def look(self) -> None:
        """Whether the files changed; then take them, if they are right."""
        state = self._seen()
        if state == self._state:
            return
        try:
            self.context.newest, self._pair = self._loaded()
        except InvalidInput as error:  # it may be between one file and the other, and is looked at again
            if state != self._refused:
                log.warning("the certificate changed and is not taken, the one before goes on: %s", error)
            self._refused = state
        else:
            self._state = self._refused = state
            log.info("the certificate %s was renewed", self.path)

    def _seen(self) -> list[tuple[int, int, int]]:
        told = []
        for path in (self.path, self._key):
            with contextlib.suppress(OSError):
                now = path.stat()
                told.append((now.st_ino, now.st_mtime_ns, now.st_size))
        return told

    def _loaded(self) -> tuple[_Context, tuple[bytes, bytes]]:
        """What is in the files: for handshakes, and key and certificate as they are there. Raises InvalidInput."""
        pair = (_read(self._key, "tls_key"), _read(self.path, "tls_cert"))
        context = _Context(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.path, self._key, password=_refuse_password)
        except _IsEncrypted:
            raise InvalidInput(
                f"the key {self._key} is encrypted, and nobody is there to type its password; keep it unencrypted in a file "
                f"that only the service reads: openssl pkey -in {self._key.name} -out plain.pem"
            ) from None
        except ssl.SSLError as error:
            raise InvalidInput(self._wrong(error, pair)) from None
        except OSError as error:  # one is gone that was there, say
            raise InvalidInput(f"can't read {self.path} and {self._key}: {error.strerror}") from error
        return context, pair

    def _wrong(self, error: ssl.SSLError, pair: tuple[bytes, bytes]) -> str:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"the key {self._key} is not that of the certificate {self.path}; give the pair that belongs together"
        if b"-----BEGIN CERTIFICATE-----" not in pair[1]:
            return f"{self.path} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"
        if b"PRIVATE KEY-----" not in pair[0]:
            return f"{self._key} holds no private key in PEM (-----BEGIN PRIVATE KEY-----)"
        return f"the certificate {self.path} and the key {self._key} can't be used: {error.reason or error}"


class _IsEncrypted(Exception):
    """A password was asked for."""


def _refuse_password() -> str:
    raise _IsEncrypted


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"can't read {path} ({setting}): {error.strerror}") from error


class _Context(ssl.SSLContext):
    """Makes handshakes that tell a client that speaks HTTP without TLS so."""

    newest: _Context | None = None
    """Whose handshakes are made instead. A listener keeps the context that it was given, and OpenSSL in each one certificate
    for every kind of key: a renewed one of another kind would stand beside the old, which many clients would still get."""

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *more: Any, **named: Any) -> ssl.SSLObject:
        """As the library's."""
        made = ssl.SSLContext.wrap_bio(self.newest or self, incoming, outgoing, *more, **named)
        assert isinstance(made, _Handshake)
        made.outgoing = outgoing
        return made


class _Handshake(ssl.SSLObject):
    outgoing: ssl.MemoryBIO
    _is_told = False

    def do_handshake(self) -> None:
        """As the library's, but plain HTTP is answered, and the client left to hang up until the handshake's time is over."""
        try:
            super().do_handshake()
        except ssl.SSLError as error:
            if error.reason != "HTTP_REQUEST" or self._is_told:
                raise
            self._is_told = True
            self.outgoing.write(TOLD)
            raise ssl.SSLWantReadError from None


_Context.sslobject_class = _Handshake
