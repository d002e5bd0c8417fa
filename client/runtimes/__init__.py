"""What computes a stored network on a device: torch, or ONNX without torch. Arrays in, arrays out."""
