"""The tests of ciruela; folders mirror those of the program, ``real`` holds what needs sockets and processes."""

import os

if "TEST_TIMES" in os.environ:
    from tests.measure import time_tests

    time_tests(os.environ["TEST_TIMES"])
