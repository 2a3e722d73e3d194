"""Who may come in from another computer: CURVE key pairs, in files, and a server's list of those it knows.

A key is a text file in ZeroMQ's own certificate format (`zmq.auth` reads it). NAME.key is public and is carried to the
other side; NAME.key_secret never leaves its computer. A server's folder holds its own pair and `authorized_clients`:
a line for each client, with its role, name and public key.

Rule: a secret that others may read is no secret, and is refused.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

import zmq
from zmq.utils import z85

from hotpolicy.runtime.durable import replace_file
from hotpolicy.runtime.errors import ConfigError

Role = Literal["robot", "operator"]  # an operator may do all that a robot may, and command

ROLES = get_args(Role)
SERVER = "server"
CLIENTS = "authorized_clients"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
LONGEST_FILE = 1 << 20
_HEAD = "# {what} of {name}. {advice}\n"
_LIST_HEAD = "# role  name  public key; written by `hotpolicy keys allow` and `revoke`, read while the server runs\n"


@dataclass(frozen=True, slots=True)
class KeyPair:
    name: str
    public: bytes  # 40 characters of Z85
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a client needs to be let in: its own pair, and the server's public key, so that it asks no other."""

    own: KeyPair
    server: bytes

    @classmethod
    def load(cls, key: str | Path, server_key: str | Path) -> ClientKeys:
        """From NAME.key_secret and server.key. Raises ConfigError naming the file."""
        return cls(load_secret(Path(key)), load_public(Path(server_key))[1])

    def lock(self, socket: zmq.Socket[bytes]) -> None:
        """Before it connects."""
        socket.set(zmq.CURVE_PUBLICKEY, self.own.public)
        socket.set(zmq.CURVE_SECRETKEY, self.own.secret)
        socket.set(zmq.CURVE_SERVERKEY, self.server)


@dataclass(frozen=True, slots=True)
class Client:
    name: str
    role: Role
    public: bytes


@dataclass(frozen=True, slots=True)
class ServerKeys:
    own: KeyPair
    folder: Path

    @classmethod
    def load(cls, folder: str | Path) -> ServerKeys:
        """Raises ConfigError naming the file that is missing, damaged or readable by others."""
        path = Path(folder)
        keys = cls(load_secret(path / f"{SERVER}.key_secret"), path)
        read_clients(path)
        return keys


def new_pair(name: str) -> KeyPair:
    """Raises ConfigError when the name cannot be a file's."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"name: expected up to 64 letters, digits, dots, dashes and underscores, got {name!r}")
    public, secret = zmq.curve_keypair()
    return KeyPair(name, public, secret)


def save(pair: KeyPair, folder: Path) -> tuple[Path, Path]:
    """Write NAME.key and NAME.key_secret; returns their paths. Raises ConfigError: a key that is there is never
    replaced, since everyone who was told of it would be locked out."""
    public, secret = folder / f"{pair.name}.key", folder / f"{pair.name}.key_secret"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (public, secret):
            if path.exists():
                raise ConfigError(f"{path}: expected no key of that name yet; choose another name, or remove it")
        text = _certificate(pair, "Secret key", "Never leaves this computer.", secret=True)
        replace_file(secret, text.encode(), mode=0o600)
        replace_file(public, _certificate(pair, "Public key", "Carry it to the other side.", secret=False).encode())
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write keys: {error.strerror}") from error
    return public, secret


def _certificate(pair: KeyPair, what: str, advice: str, secret: bool) -> str:
    lines = [_HEAD.format(what=what, name=pair.name, advice=advice), "metadata\n", f'    name = "{pair.name}"\n']
    lines += ["curve\n", f'    public-key = "{pair.public.decode()}"\n']
    if secret:
        lines.append(f'    secret-key = "{pair.secret.decode()}"\n')
    return "".join(lines)


def load_public(path: Path) -> tuple[str, bytes]:
    """The name and public key in NAME.key. Raises ConfigError."""
    found = _read_certificate(path)
    return found.get("name", path.stem), _key(path, "public-key", found)


def load_secret(path: Path) -> KeyPair:
    """The pair in NAME.key_secret. Raises ConfigError, also when anyone but its owner may read the file."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"{path}: expected a secret key, made by `hotpolicy keys new`: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"{path}: expected a file only its owner may read (chmod 600), its mode is {mode:o}")
    found = _read_certificate(path)
    pair = KeyPair(found.get("name", path.stem), _key(path, "public-key", found), _key(path, "secret-key", found))
    if zmq.curve_public(pair.secret) != pair.public:
        raise ConfigError(f"{path}: expected a public-key that belongs to the secret-key; the file is damaged")
    return pair


def _read_certificate(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in _lines(path, "a key, made by `hotpolicy keys new`"):
        name, separator, value = line.partition("=")
        if separator:
            found[name.strip()] = value.strip().strip("\"'")
    return found


def _key(path: Path, name: str, found: Mapping[str, str]) -> bytes:
    if name not in found:
        other = "; this is a public key, NAME.key_secret is wanted" if name == "secret-key" and found else ""
        raise ConfigError(f'{path}: expected a line {name} = "..."{other}')
    return _valid(f"{path}: {name}", found[name])


def _valid(where: str, text: str) -> bytes:
    if Z85.fullmatch(text):
        try:
            z85.decode(text)
        except struct.error as error:  # five characters that make more than 32 bits
            raise ConfigError(f"{where}: expected 40 characters of Z85; the key is damaged") from error
        return text.encode()
    raise ConfigError(f"{where}: expected 40 characters of Z85, got {len(text)} characters")


def _lines(path: Path, expected: str) -> list[str]:
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST_FILE)
        lines = data.decode("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: expected {expected}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected {expected}, and text") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def read_clients(folder: Path) -> tuple[Client, ...]:
    """Those a server lets in. Nobody, where there is no list yet. Raises ConfigError naming file and line."""
    path = folder / CLIENTS
    if not path.exists():
        return ()
    clients = []
    for line in _lines(path, "a list of clients"):
        role, name, key, *more = [*line.split(), "", "", ""]
        if role not in ROLES or not NAME.fullmatch(name) or not key or any(more):
            raise ConfigError(f"{path}: expected lines of robot|operator, name and key, got {line[:40]!r}")
        clients.append(Client(name, cast(Role, role), _valid(f"{path}: {name}", key)))
    for what, seen in (("names", [c.name for c in clients]), ("keys", [c.public for c in clients])):
        if len(set(seen)) < len(seen):
            raise ConfigError(f"{path}: expected {what} that differ; one is there twice")
    return tuple(clients)


def allow(folder: Path, public: Path, role: Role) -> Client:
    """Add a client's public key to a server's list, or change its role. Raises ConfigError."""
    name, key = load_public(public)
    clients = read_clients(_server_folder(folder))
    if any(client.name == name and client.public != key for client in clients):
        raise ConfigError(f"{name}: expected a new name, another key is allowed under it; revoke that one first")
    allowed = Client(name, role, key)
    _write_clients(folder, [*(client for client in clients if client.public != key), allowed])
    return allowed


def revoke(folder: Path, name: str) -> None:
    """Take a client off a server's list. Raises ConfigError when it is not on it."""
    clients = read_clients(_server_folder(folder))
    kept = [client for client in clients if client.name != name]
    if len(kept) == len(clients):
        known = ", ".join(client.name for client in clients) or "nobody"
        raise ConfigError(f"name: expected one that is allowed ({known}), got {name!r}")
    _write_clients(folder, kept)


def _server_folder(folder: Path) -> Path:
    if not (folder / f"{SERVER}.key").is_file():
        raise ConfigError(f"{folder}: expected a server's keys; make them: hotpolicy keys new --server {folder}")
    return folder


def _write_clients(folder: Path, clients: Iterable[Client]) -> None:
    lines = [f"{client.role}  {client.name}  {client.public.decode()}\n" for client in clients]
    try:
        replace_file(folder / CLIENTS, "".join([_LIST_HEAD, *lines]).encode(), mode=0o600)
    except OSError as error:
        raise ConfigError(f"{folder / CLIENTS}: cannot be written: {error.strerror}") from error


def owner() -> str:
    """A name for this computer's key."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", os.uname().nodename).lstrip("._-")[:64] or "client"
