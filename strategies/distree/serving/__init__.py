"""Distributed inference: several devices answer each request together."""
