"""The UDP port of gossip: bytes and addresses, nothing else."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IListeningPort, IReactorTime, IReactorUDP
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from ciruela.interfaces import Address
from ciruela.runtime import RateLimitedLog

MAX_DATAGRAM_BYTES = 1400
"""Fits into one Ethernet frame with room for tunnels; the longest datagram of our gossip."""


class DatagramPort(DatagramProtocol):
    """Implements :class:`ciruela.interfaces.Datagrams`. ``deliver`` gets each datagram and where it came from.

    ``refused`` counts datagrams that were too long, ``unsent`` those that the system did not take, ``faults`` exceptions of ``deliver``.
    A socket that is bound to an IPv6 wildcard carries IPv4, too: addresses of IPv4 peers are mapped on their way to the system, and back.
    """

    _log = Logger()

    def __init__(self, deliver: Callable[[bytes, Address], object], clock: IReactorTime) -> None:
        self._deliver = deliver
        self._hush = RateLimitedLog(clock)
        self._mapped = False
        self.refused = 0
        self.unsent = 0
        self.faults = 0

    def startProtocol(self) -> None:  # noqa: N802
        """Twisted: the socket is bound."""
        host = getattr(self.transport.getHost(), "host", "") if self.transport is not None else ""
        self._mapped = ":" in host

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:  # noqa: N802
        """Twisted: a datagram came."""
        if len(datagram) > MAX_DATAGRAM_BYTES:  # guard: A35 A34
            self.refused += 1
            return
        try:
            self._deliver(datagram, Address.of(addr[0], addr[1]))  # guard: K1.3, Address.of -> Address
        # guard: I8
        except Exception:  # noqa: BLE001  Twisted would go on, but without knowing who sent it
            self.faults += 1
            self._log.failure("a datagram of {size} bytes from {peer} was not understood", size=len(datagram), peer=addr[0])

    def send(self, data: bytes, address: Address) -> None:
        """Send one datagram; it may be lost.

        Longer ones than 1,400 bytes and those that the system refuses are counted as unsent; why the system refuses is logged.
        """
        if len(data) > MAX_DATAGRAM_BYTES or self.transport is None:  # guard: A35, without 1
            self.unsent += 1
            return
        host = f"::ffff:{address.host}" if self._mapped and ":" not in address.host else address.host  # guard: K1.3, -> address.host
        try:
            self.transport.write(data, (host, address.port))
        # guard: I8
        except (OSError, ValueError) as error:  # no route, a full buffer, or an address of the other family: as good as lost
            self.unsent += 1
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self._hush.warn(
                self._log, "unsent", address, "a datagram to {address} could not be sent: {reason}", address=str(address), reason=reason
            )

    def connectionRefused(self) -> None:  # noqa: N802
        """Twisted: a node told by ICMP that nobody listens there."""


def listen(
    reactor: IReactorUDP, host: str, port: int, deliver: Callable[[bytes, Address], object], clock: IReactorTime
) -> tuple[DatagramPort, IListeningPort]:
    """Bind ``host:port``. Raises twisted.internet.error.CannotListenError."""
    protocol = DatagramPort(deliver, clock)
    return protocol, reactor.listenUDP(port, protocol, interface=host, maxPacketSize=65536)
