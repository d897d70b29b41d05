"""Scoring: how alike two voices' embeddings are.

Today the cosine between a speaker's profile and a test embedding.
"""

from fedspk.scoring.cosine import cosine_scores, make_profile

__all__ = ["cosine_scores", "make_profile"]
