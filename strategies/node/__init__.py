"""The client's frame: a node hosts clients and trains them with their method's client half."""
