"""The rounds' own stream: orders and replies between the server's app and the nodes, beside Flower's messages."""
