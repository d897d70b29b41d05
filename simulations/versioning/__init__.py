"""Version-control strategies of a speaker-recognition service, simulated before one is rolled out.

`config` says what is simulated, `run.simulate` simulates one run of one strategy, and `fedspk
versim` compares strategies over many runs. After Wang and Lopez Moreno, "Version control of
speaker recognition systems", arXiv 2007.12069.
"""
