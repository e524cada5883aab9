"""The tests of ciruela; folders mirror those of the program, ``real`` holds what needs sockets and processes."""
