"""The aggregator: a Flower ServerApp that averages what devices learnt into the next model.

`rounds` is the arithmetic of a round, `optimisers` the server's step, `federation` the loop,
`checkpoint` its memory, `server_app` the thin Flower end.
"""
