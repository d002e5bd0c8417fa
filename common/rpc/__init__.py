"""Our own gRPC streams, for traffic per batch: a Flower message per batch would take seconds each."""
