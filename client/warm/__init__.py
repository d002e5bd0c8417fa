"""Processes that stay beside a SuperNode, so that a message does not wait for imports."""
