"""Tells twistd of the ``ciruela`` service. Nothing else: this file is imported whenever twistd lists its plugins."""

from twisted.application.service import ServiceMaker

ciruela = ServiceMaker("ciruela", "ciruela.daemon.tap", "Node of a ciruela cluster", "ciruela")
