"""From the nodes' replies to a round's update, and to the clients' own evaluation."""

import re
from collections.abc import Collection, Iterable, Mapping
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.supercore import log

from common.errors import UserError
from common.messages import protocol
from strategies.client_evaluation import SCORE_BYTES, check, summarise
from strategies.engine.aggregation import RoundCollector
from strategies.engine.late import Latecomers
from strategies.engine.roster import Roster
from strategies.engine.rounds import Usage
from strategies.engine.states import States
from strategies.method import RoundUpdate, ServerMethod

# from Ray's OutOfMemoryError, which goes on for 20 lines
OUT_OF_MEMORY = re.compile(
    r"Memory on the node \(IP: (?P<ip>[^,)]+).*?\) was (?P<used>[^(]+?) \(.*?exceeded (?P<limit>threshold of [^)]*\))",
    re.DOTALL,
)
Hosted = Mapping[int, tuple[int, ...]]  # node -> clients that its message was for


def collect(
    strategy: ServerMethod,
    round_: int,
    replies: Iterable[Message],
    collector: RoundCollector,
    hosted: Hosted,
    *,
    roster: Roster,
    late: Latecomers,
    usage: Usage,
    states: States,
) -> RoundUpdate:
    """Fold each reply as it arrives; a reply that is unfit is its clients' failure and ends nothing else.

    Raises `UserError` when the server cannot store what clients keep.
    """
    for message in replies:
        usage.count("up", message)
        if late.take(message, collector, round_):
            continue
        clients = hosted.get(message.metadata.src_node_id, ())
        try:
            if message.has_error():
                for client in clients:
                    collector.fail(client, f"its node failed: {last_line(message.error.reason)}")
            else:
                allowed = sum(strategy.client_array_bytes(strategy.asked[client]) for client in clients)
                reply = protocol.unpack_reply(message.content, strategy.uploads, None if states.travel else allowed)
                states.take(reply, clients, round_, strategy.committed)
                roster.update(report for report in reply.reports if report.client in clients)
                collector.add(reply, clients)
        except OSError as error:  # of the server's own disk, such as StorageError, which is a ValueError too
            raise UserError(
                f"round {round_} cannot be kept: {error}; make room, then continue with run.resume"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            for client in clients:
                collector.reject(client, str(error))
        for client in set(clients) & set(collector.update.failures):
            strategy.lost(client)
    late.settle(collector, round_)
    update = collector.finish()
    for client in update.failures:  # those that did not answer, too
        strategy.lost(client)
    for part, tier in update.tiers.items():  # frozen weights do not travel up
        tier.state.update({key: strategy.model[key] for key in strategy.layouts[part].keys if key not in tier.state})
    return update


def client_scores(
    strategy: ServerMethod,
    replies: Iterable[Message],
    hosted: Hosted,
    trained: Collection[int],
    *,
    roster: Roster,
    usage: Usage,
) -> dict[str, Any]:
    """Return the clients' evaluation, as `client_evaluation.summarise` does, and by part if there are several."""
    measure, loss = strategy.method.measure, strategy.config.server.accuracy_loss
    scores: dict[int, Mapping[str, np.ndarray]] = {}
    for message in replies:
        usage.count("up", message)
        scores |= _scores(strategy, message, hosted.get(message.metadata.src_node_id, ()), roster)
    parts = {client: strategy.part(roster.reports[client]) for client in scores}
    macs = {client: strategy.parts.exit_macs(part) for client, part in parts.items()}
    result = summarise(scores, trained, macs, loss, measure)
    if len(set(parts.values())) > 1:
        groups = {p: {c: s for c, s in scores.items() if parts[c] == p} for p in sorted(set(parts.values()))}
        result["by_part"] = {part: summarise(group, trained, macs, loss, measure) for part, group in groups.items()}
    return result


def problems(reply: Message) -> list[str]:
    """Return what went wrong on a node, or for which of its clients."""
    if reply.has_error():
        return [last_line(reply.error.reason)]
    try:
        results = protocol.unpack_reply(reply.content, {}, 0).results
    except ValueError as error:
        return [str(error)]
    return [f"client {result.client}: {result.error}" for result in results if result.error]


def last_line(reason: str | None) -> str:
    """Return what an exception said, without the stack above it or what Ray tells about a killed worker below it."""
    if killed := OUT_OF_MEMORY.search(reason or ""):
        return f"its worker was killed for memory: the machine {killed['ip']} has {killed['used']} ({killed['limit']})"
    return ((reason or "").strip().splitlines() or ["no reason given"])[-1]


def _scores(
    strategy: ServerMethod, message: Message, hosted: Collection[int], roster: Roster
) -> dict[int, Mapping[str, np.ndarray]]:
    """Return the arrays of a node's clients that are fit; the log says why the others are not."""
    node, scores = message.metadata.src_node_id, dict[int, Mapping[str, np.ndarray]]()
    try:
        if message.has_error():
            raise ValueError(last_line(message.error.reason))
        reply = protocol.unpack_reply(message.content, {}, len(hosted) * SCORE_BYTES)
    except ValueError as error:
        log(WARNING, "node %d could not evaluate: %s", node, error)
        return {}
    failed = {result.client: result.error for result in reply.results if result.error}
    for client in set(reply.client_arrays) & set(hosted):
        exits = len(strategy.parts.exit_macs(strategy.part(roster.reports[client])))
        try:
            check(reply.client_arrays[client], exits, strategy.method.measure)
            scores[client] = reply.client_arrays[client]
        except ValueError as error:
            failed[client] = str(error)
    for client, problem in sorted(failed.items()):
        log(WARNING, "client %d could not evaluate: %s", client, problem)
    return scores
