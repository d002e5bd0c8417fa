"""Callbacks of the round loop: the run folder, progress lines, Prometheus, TensorBoard, the report."""
