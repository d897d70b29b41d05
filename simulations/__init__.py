"""Whole-system experiments on one machine or one cluster.

`executors` runs tasks on processes or Ray actors, `grid` runs Flower apps on an executor.
`federated` is the main experiment: individual against federated speaker verification.
"""
