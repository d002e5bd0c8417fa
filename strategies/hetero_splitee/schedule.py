"""The order in which the server trains on its clients' batches."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from common.seeding import derive_seed


def order(clients: Collection[int], how: str, seed: int, round_: int) -> Sequence[int]:
    """Return the order of clients in a round's turns: by id, or with "shuffled" drawn from the run's seed."""
    if how == "shuffled":
        return sorted(clients, key=lambda client: (derive_seed(seed, "turn", round_, client), client))
    return sorted(clients)


def turns(batches: Mapping[int, int], epochs: int, granularity: str) -> Iterator[tuple[int, ...]]:
    """Yield, turn by turn, the clients whose next batch the server trains on.

    Args:
        batches: each client's mini-batches per local epoch, in the order of a turn (`order`).
        epochs: local epochs of a round.
        granularity: "batch": a turn takes the next batch of every client that has one left (alternate mini-batch
            training, Gawali et al., arXiv 2012.12591); "epoch": a client's whole epoch, then the next client's, a
            batch per turn.
    """
    if granularity == "epoch":
        for _ in range(epochs):
            for client in batches:
                yield from [(client,)] * batches[client]
        return
    for turn in range(epochs * max(batches.values(), default=0)):
        yield tuple(client for client in batches if turn < epochs * batches[client])
