"""The ClientApp: a node that hosts one client on a device, or many in a simulation."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from common import protocol
from strategies import host

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which clients this node has and what depth each of them chooses, and why."""
    order, _ = protocol.unpack_order(message.content)
    return Message(protocol.pack_report(host.describe(order, context.node_config)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients of the order."""
    return Message(
        protocol.pack_reply(host.train(*protocol.unpack_order(message.content), context.node_config)), reply_to=message
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global network on the clients' own images."""
    order, payload = protocol.unpack_order(message.content)
    return Message(protocol.pack_reply(host.evaluate(order, payload, context.node_config)), reply_to=message)


@app.train("deliver")
def deliver(message: Message, context: Context) -> Message:
    """Store the clients' final models for inference without a server."""
    order, payload = protocol.unpack_order(message.content)
    return Message(protocol.pack_reply(host.deliver(order, payload, context.node_config)), reply_to=message)
