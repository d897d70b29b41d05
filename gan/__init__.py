"""The impostor generator: invented voices that a device can train against.

A generative adversarial network is trained once on public speech (`gan.training`); devices get the
generator alone (`gan.generator_file`) and draw from it patch by patch (`gan.sampling`).
`gan.report` says how good its voices are and what they give away.
"""
