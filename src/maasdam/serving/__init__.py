"""Serving: requests to running engines. Knows queues, batches and running copies; never HTTP, keys or money."""
