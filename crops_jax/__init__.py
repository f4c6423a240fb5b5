"""CroPS-JAX: from a platform's search and feed logs to a dual-encoder retriever its serving team can load."""

__version__ = "0.9.9"
