"""The federated experiment on one machine: individual against federated error rates by device.

`fedspk simulate` is `experiment.run_experiment`; every other file is one step of it.
"""
