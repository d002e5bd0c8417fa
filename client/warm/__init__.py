"""Processes that stay beside a SuperNode, so that no message waits for imports."""
