"""The core library: audio, features, corpora, encoders, training, scoring, weights.

Nothing here knows Flower, a web framework or a role; every role package stands on it.
"""

from importlib.metadata import version

__version__ = version("fedspk")
