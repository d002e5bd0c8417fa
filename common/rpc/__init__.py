"""Our own gRPC streams, for what Flower's messages cannot carry: one message per batch costs them seconds."""
