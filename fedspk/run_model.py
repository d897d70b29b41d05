"""The network of a federated run, built the same way by aggregator, devices and experiments."""

from __future__ import annotations

from fedspk.model import HeadConfig, SpeakerModel, build_model
from fedspk.rounds import RunConfig
from fedspk.seeds import derive
from fedspk.weights import FloatVector, flatten


def device_model(config: RunConfig, index: int = 0) -> SpeakerModel:
    """Return the run's model for device `index`, with its initial weights."""
    fixed = config.codeword_seed is not None
    head = HeadConfig(
        kind=config.head_kind,
        public=config.public,
        devices=config.devices,
        owner=index if fixed else 0,
        codeword_seed=config.codeword_seed,
        scale=config.scale,
        margin=config.margin,
    )
    return run_network(config, head)


def run_network(config: RunConfig, head: HeadConfig) -> SpeakerModel:
    """Return the run's encoder under any head, with the run's initial weights."""
    return build_model(
        config.encoder,
        head,
        bins=config.bins,
        frames=config.frames,
        seed=derive(config.seed, "model"),
        **config.encoder_params,
    )


def shared_names(model: SpeakerModel, config: RunConfig) -> list[str]:
    """Return the parameters that are federated, in the vector's order."""
    return model.shared_parameters(config.head, batchnorm_statistics=config.share_statistics)


def all_names(model: SpeakerModel) -> list[str]:
    """Return everything that training changes, in the order of `PersonalModel.vector`."""
    return model.shared_parameters("shared", batchnorm_statistics=True)


def initial_vector(config: RunConfig) -> FloatVector:
    """Return the shared parameters (n,) float32 of the run's freshly drawn model."""
    model = device_model(config)
    return flatten(model.state_dict(), shared_names(model, config))
