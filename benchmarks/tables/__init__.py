"""The tables and figures of the documents, rendered from `benchmarks/results`, so that they cannot drift from it."""
