"""What happens around the rounds: the run folder, progress, TensorBoard, the report."""
