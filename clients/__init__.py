"""The edge device: what it keeps, how it trains, and the Flower ClientApp that it answers with.

`dataset` is the device's own speech and impostors, `local` its training, `client_app` the thin
Flower end. Features, embeddings and private parts of the model never leave the device's folder.
"""
