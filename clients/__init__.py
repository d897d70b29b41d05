"""The edge device: what it keeps, how it recognises and trains, and the Flower ClientApp.

`recogniser` enrols and verifies speakers in the encrypted `vault`; `dataset` is the device's own
speech and impostors, `local` its training, `client_app` the thin Flower end. Features, embeddings
and private parts of the model never leave the device's folder.
"""
