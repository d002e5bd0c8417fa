"""README's tables of measurements, rendered from `benchmarks/results`, so that what is told is what was measured."""
