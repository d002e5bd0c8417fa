"""The ClientApp: a node that hosts one client on a device, or many in a simulation.

Importing it does not import torch: a deployed ClientApp is a new process for every message, which hands the work to a
worker process that stays.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.warm import dispatch
from common import logs

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Report this node's clients and the depth that each chooses, with the reason."""
    return _respond(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients of the order."""
    return _respond(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global network on the clients' own images."""
    return _respond(message, context)


@app.train("deliver")
def deliver(message: Message, context: Context) -> Message:
    """Store the clients' final models for inference without a server."""
    return _respond(message, context)


def _respond(message: Message, context: Context) -> Message:
    node = {**context.node_config, logs.NODE_ID: str(context.node_id)}
    with logs.of_message(message.content, node):
        content = dispatch.respond(message.metadata.message_type, message.content, context.node_id, node)
    return Message(content, reply_to=message)
