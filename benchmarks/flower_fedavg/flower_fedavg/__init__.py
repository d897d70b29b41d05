"""Flower's own FedAvg with a client that adds a constant: overhead and nothing else."""
