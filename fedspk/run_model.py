"""The network of a federated run, built the same way by aggregator, devices and experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedspk.engine import ModelDescription, load_described, save_described
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.model import HeadConfig, SpeakerModel, build_model
from fedspk.rounds import RunConfig
from fedspk.seeds import derive
from fedspk.weights import FloatVector, flatten, unflatten


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


def require_whole_encoder(config: RunConfig) -> None:
    """Accept a run whose shared parameters are a whole encoder.

    Raises:
        FedspkError: the encoder has running statistics, and they are not shared.
    """
    model = device_model(config)
    encoder = {f"encoder.{name}" for name in model.encoder.state_dict()}
    if {n for n in encoder if "num_batches" not in n} - set(shared_names(model, config)):
        raise FedspkError(
            f"Configuration field run.share_statistics: encoder {config.encoder} has running "
            "statistics, which every device needs from the start; set it to true."
        )


def federated_model(vector: FloatVector, config: RunConfig) -> SpeakerModel:
    """Return the run's model with these shared parameters, apart from what devices keep.

    Raises:
        FedspkError: the vector is of another network.
    """
    model = device_model(config)
    model.load_parameters(unflatten(vector, model.state_dict(), shared_names(model, config)))
    return model.eval()


def save_shared(path: Path, vector: FloatVector, config: RunConfig) -> None:
    """Write the model file of a run's shared parameters; the same vector gives the same bytes.

    Raises:
        FedspkError: the vector is of another network, or the file cannot be written.
    """
    save_described(path, federated_model(vector, config), _description(config))


def load_shared(path: Path, config: RunConfig) -> FloatVector:
    """Return a run's shared parameters (n,) float32 from a model file.

    Raises:
        FedspkError: the file is missing or broken, or of another network than the run's.
    """
    description, state = load_described(path)
    model = device_model(config)
    names, like = shared_names(model, config), model.state_dict()
    if description != _description(config) or any(
        name not in state or state[name].shape != like[name].shape for name in names
    ):
        raise FedspkError(f"{path}: is not a model of this run's network.")
    return flatten(state, names)


def starting_vector(path: Path, config: RunConfig) -> FloatVector:
    """Return the shared parameters (n,) float32 with which a run goes on from any model file.

    The encoder is the file's; so is the head, where it is of the run's kind and size.

    Raises:
        FedspkError: the file is missing or broken, or of another encoder or front end.
    """
    description, state = load_described(path)
    if description != _description(config):
        raise FedspkError(
            f"{path}: holds encoder {description.encoder} with {description.front_end}; this run "
            f"trains {config.encoder} with {run_front_end(config)}."
        )
    model = device_model(config)
    like = model.state_dict()
    fitting = {name: v for name, v in state.items() if name in like and v.shape == like[name].shape}
    model.load_parameters(fitting)
    return flatten(model.state_dict(), shared_names(model, config))


def run_front_end(config: RunConfig) -> FrontEndConfig:
    """Return what the model of a run hears.

    Raises:
        FedspkError: it is nothing that this version of fedspk knows.
    """
    others: dict[str, Any] = dict(config.front_end)
    try:
        return FrontEndConfig(frames=config.frames, bins=config.bins, **others)
    except TypeError as error:
        raise FedspkError(f"Configuration field run.front_end: {error}.") from error


def _description(config: RunConfig) -> ModelDescription:
    return ModelDescription(config.encoder, run_front_end(config), dict(config.encoder_params))
