"""Secure sums: the aggregator learns the sum of a cohort's vectors and no single one of them.

Bonawitz et al. 2017 and Bell et al. 2020 as pure state machines, free of Flower, files and clocks.
"""
