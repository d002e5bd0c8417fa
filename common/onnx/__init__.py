"""Networks as ONNX graphs: a folder that a device reads without torch, and, with torch, how it is made."""
