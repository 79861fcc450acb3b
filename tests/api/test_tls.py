"""Certificates: what is wrong with one is said, plain HTTP is told, and a renewed one serves the next handshakes."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import grpc
import pytest

from maasdam.api import tls
from maasdam.api.tls import TlsPair
from maasdam.errors import InvalidInput
from maasdam.operations.address import Address, asked
from maasdam.settings import Settings


def pair(folder: Path, name: str = "one", *more: str, is_rsa: bool = False) -> tuple[Path, Path]:
    """A certificate of its own, and its key."""
    folder.mkdir(exist_ok=True)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    kind = ["rsa:2048"] if is_rsa else ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    words = ["openssl", "req", "-x509", "-newkey", *kind, "-keyout", str(key)]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        [*words, "-out", str(certificate), "-days", "2", *names, *(more or ("-nodes",))], check=True, capture_output=True
    )
    return certificate, key


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return pair(tmp_path_factory.mktemp("one"))


def test_what_is_wrong_with_a_pair_is_said(one: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = one
    _, other = pair(tmp_path, "other")
    _, locked = pair(tmp_path, "locked", "-passout", "pass:secret")
    (tmp_path / "text").write_text("no PEM")
    for given, says in (
        ((tmp_path / "none.pem", key), r"none.pem \(tls_cert\): No such file"),
        ((certificate, tmp_path), r"\(tls_key\): Is a directory"),
        ((certificate, other), "is not that of the certificate"),
        ((certificate, locked), "is encrypted"),
        ((tmp_path / "text", key), "no certificate in PEM"),
        ((certificate, tmp_path / "text"), "no private key in PEM"),
    ):
        with pytest.raises(InvalidInput, match=says):
            TlsPair(*given)
    with pytest.raises(InvalidInput, match=r"set tls_key \(--tls-key\) too"):
        TlsPair.of(Settings(tls_cert=str(certificate)))
    assert TlsPair.of(Settings()) is None


class Served:
    """Answers each connection with a plain HTTP answer, through a certificate's context."""

    def __init__(self, certificate: TlsPair) -> None:
        self.loop = asyncio.new_event_loop()
        self.port = 0
        self._certificate = certificate

    async def _start(self) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            writer.close()

        context = self._certificate.context
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context, ssl_handshake_timeout=1.0)
        self.port = server.sockets[0].getsockname()[1]


@pytest.fixture
def served(one: tuple[Path, Path], tmp_path: Path) -> Iterator[tuple[Served, TlsPair]]:
    import threading

    import uvloop

    for path, name in zip(one, ("one.pem", "one.key"), strict=True):
        (tmp_path / name).write_bytes(path.read_bytes())
    certificate = TlsPair(tmp_path / "one.pem", tmp_path / "one.key")
    it = Served(certificate)
    it.loop = uvloop.new_event_loop()
    it.loop.run_until_complete(it._start())
    thread = threading.Thread(target=it.loop.run_forever, daemon=True)
    thread.start()
    yield it, certificate
    it.loop.call_soon_threadsafe(it.loop.stop)
    thread.join(10)


def ask(port: int, certificate: Path) -> tuple[int, bytes]:
    return asked(Address(f"https://127.0.0.1:{port}", 0, "", str(certificate)), "/", None, 5.0)


def test_one_certificate_is_trusted_and_no_other_though_its_names_are_right(
    served: tuple[Served, TlsPair], tmp_path: Path
) -> None:
    it, certificate = served
    assert ask(it.port, certificate.path) == (200, b"ok")
    other, _ = pair(tmp_path, "other")
    for trusted in (str(other), ""):
        with pytest.raises(ssl.SSLCertVerificationError):
            asked(Address(f"https://127.0.0.1:{it.port}", 0, "", trusted), "/", "secret", 5.0)


def test_plain_http_is_told_and_others_are_cut_off(served: tuple[Served, TlsPair]) -> None:
    it, _ = served
    for sent, has in ((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"400 Bad Request"), (b"\x00" * 50, b""), (b"", b"")):
        with socket.create_connection(("127.0.0.1", it.port), timeout=10) as raw:
            raw.sendall(sent)
            told = b""
            while data := _read(raw):
                told += data
        assert (b"use https://" in told and has in told) if has else b"HTTP" not in told
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", it.port), timeout=10) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(raw)


def _read(raw: socket.socket) -> bytes:
    try:
        return raw.recv(4096)
    except ConnectionError:
        return b""


@pytest.mark.parametrize("is_rsa", [False, True], ids=["the same kind of key", "another"])
def test_what_is_renewed_serves_the_next_and_what_is_wrong_does_not(
    served: tuple[Served, TlsPair], tmp_path: Path, is_rsa: bool
) -> None:
    it, certificate = served
    before = (tmp_path / "before.pem", tmp_path / "one.pem")
    before[0].write_bytes(before[1].read_bytes())
    new, key = pair(tmp_path, "new", is_rsa=is_rsa)
    certificate.path.write_bytes(new.read_bytes())
    certificate.look()  # the key is still the old one's
    assert ask(it.port, before[0])[0] == 200
    (tmp_path / "one.key").write_bytes(key.read_bytes())
    certificate.look()
    assert ask(it.port, new)[0] == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(it.port, before[0])


@pytest.mark.parametrize("gone", ["one.pem", "one.key"])
def test_files_that_can_not_be_read_are_looked_at_again(
    served: tuple[Served, TlsPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    """They are gone between one look and the other; there are no descriptors for a while."""
    it, certificate = served
    new, key = pair(tmp_path, "new")
    (tmp_path / "one.pem").write_bytes(new.read_bytes())
    (tmp_path / "one.key").write_bytes(key.read_bytes())
    read = tls._read

    def racing(path: Path, setting: str) -> bytes:
        data = read(path, setting)
        if setting == "tls_cert":
            (tmp_path / gone).unlink()
        return data

    monkeypatch.setattr(tls, "_read", racing)
    certificate.look()
    monkeypatch.setattr(tls, "_read", read)
    (tmp_path / gone).write_bytes((new if gone == "one.pem" else key).read_bytes())
    with monkeypatch.context() as patched:
        full = OSError(errno.EMFILE, "Too many open files")
        patched.setattr(Path, "read_bytes", Mock(side_effect=full))
        for _ in range(3):
            certificate.look()
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["No such file or directory", full.strerror]
    certificate.look()
    assert ask(it.port, new)[0] == 200


def test_grpc_has_what_was_renewed_too(one: tuple[Path, Path], tmp_path: Path) -> None:
    for path, name in zip(one, ("one.pem", "one.key"), strict=True):
        (tmp_path / name).write_bytes(path.read_bytes())
    certificate = TlsPair(tmp_path / "one.pem", tmp_path / "one.key")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", certificate.credentials())
    server.start()

    def is_trusted(anchor: bytes) -> bool:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(anchor), options) as channel:
            try:
                channel.unary_unary("/nothing")(b"", timeout=10)
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE)
                return error.code() is grpc.StatusCode.UNIMPLEMENTED
        raise AssertionError("nobody answers that")

    before = certificate.path.read_bytes()
    assert is_trusted(before)
    new, key = pair(tmp_path, "new", is_rsa=True)
    (tmp_path / "one.key").write_bytes(key.read_bytes())
    certificate.look()
    assert is_trusted(before), "the certificate is still the old one's"
    certificate.path.write_bytes(new.read_bytes())
    certificate.look()
    assert is_trusted(new.read_bytes()) and not is_trusted(before)
    server.stop(0).wait(10)
