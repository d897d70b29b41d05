"""The main server: a signed repository of model versions that devices trust, and nothing else.

`repository` is the folder and its crash-safe commits, `operations` what an operator does with it
(publish, promote, roll back, accept), `upkeep` what time asks for (renew, rotate).
"""
