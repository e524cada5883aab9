"""Tells which image is at a path on each server of a cluster: python which_image.py HOST:PORT /KEY/NAME."""

import sys

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from ciruela import ClusterClient


async def main(reactor, host, path):
    """Prints a line for each server."""
    async with ClusterClient(reactor, host) as cluster:
        for row in await cluster.path_states(path):
            if row.answer is None:
                print(f"{row.name}: {row.problem}")
            elif row.answer.committed is None:
                print(f"{row.name}: no image")
            else:
                print(f"{row.name}: {row.answer.committed.image.hex()}")


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
