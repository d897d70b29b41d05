"""The core library: audio, features, corpora, encoders, training, scoring, weights.

Nothing here knows Flower, a web framework or a role; every role package stands on it.
"""

__version__ = "0.1.0"
