"""The order in which the server trains on its clients' batches."""

from collections.abc import Iterator, Mapping


def turns(batches: Mapping[int, int], epochs: int, granularity: str) -> Iterator[tuple[int, ...]]:
    """Yield, turn by turn, the clients whose next batch the server trains on, in client order.

    Args:
        batches: each client's mini-batches per local epoch.
        epochs: local epochs of a round.
        granularity: "batch": a turn takes the next batch of every client that has one left (alternate mini-batch
            training, Gawali et al., arXiv 2012.12591); "epoch": a client's whole epoch, then the next client's, a
            batch per turn.
    """
    if granularity == "epoch":
        for _ in range(epochs):
            for client in sorted(batches):
                yield from [(client,)] * batches[client]
        return
    for turn in range(epochs * max(batches.values(), default=0)):
        yield tuple(client for client in sorted(batches) if turn < epochs * batches[client])
