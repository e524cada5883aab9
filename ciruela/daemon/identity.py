"""Who this node is: its machine id and its host name (protocol section 7.3)."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from pathlib import Path

from ciruela.model.errors import ConfigError
from ciruela.model.ids import MACHINE_ID_BYTES, MachineId, parse_machine_id

MACHINE_ID_FILE = Path("/etc/machine-id")
FALLBACK_NAME = "localhost"

_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?", re.ASCII)
_REMEDY = "run systemd-machine-id-setup, or give 32 hexadecimal digits with --override-machine-id"


def machine_id(override: str | None, file: Path = MACHINE_ID_FILE) -> MachineId:
    """The override, else what ``file`` says: 32 hexadecimal digits, a newline after them is fine. Raises ConfigError.

    Each node of a cluster must have another one; zero, which no machine may have (machine-id(5)), is refused.
    """
    if override is None:
        source = str(file)
        try:
            text = file.read_bytes()[:1024].decode("ascii", "replace")
        except OSError as error:
            raise ConfigError(f"{source}: the machine id cannot be read: {error.strerror} ({_REMEDY})") from None
    else:
        source = "--override-machine-id"
        text = override
    try:
        found = parse_machine_id(text.removesuffix("\n"))
    except ValueError as error:
        raise ConfigError(f"{source}: {error} ({_REMEDY})") from None
    if found == bytes(MACHINE_ID_BYTES):
        raise ConfigError(f"{source}: a machine id of zeros only is not valid ({_REMEDY})")
    return found


def host_name(override: str | None, system: Callable[[], str] = socket.gethostname) -> str:
    """The override, else the system's name, else ``localhost``. Raises ConfigError for what others could not resolve.

    Clients are sent to this name, so it must be one that they can look up, or an address.
    """
    if override is None:
        try:
            name = system().strip() or FALLBACK_NAME
        except OSError:
            name = FALLBACK_NAME
        source = "the host name of this system"
    else:
        name = override
        source = "--override-hostname"
    if not _NAME.fullmatch(name) and not _is_address(name):
        raise ConfigError(f'{source}: "{name[:80]}" is not a name that can be looked up (give one with --override-hostname)')
    return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
