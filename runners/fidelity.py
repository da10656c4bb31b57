"""How near samples are to data, by torch-fidelity."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.training import Classify
from compiler.base_network import BaseNetwork
from runners.data import open_data
from runners.errors import TrainingError
from runners.generation import Sampler, Solving, VelocitySampler, in_turn
from runners.likeness import FEWEST, Likeness
from runners.pictures import as_bytes
from runners.train import recipe_and_data
from runners.trained import Trained

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it scripts a module as it is imported
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

SEED = 2020
KID_SUBSET = 1000
"""Samples of each subset that KID is a mean over, where there are as many."""
_TEST_SET, _OTHERS, _NETWORK = "archspec-test-set", "archspec-others", "archspec-network"


@dataclass(frozen=True)
class Features:
    """By which images are compared."""

    name: str
    extractor: type[FeatureExtractorBase] | None = None
    """torch-fidelity's own, for Inception, if None."""


@dataclass(frozen=True)
class Fidelity:
    """How near samples are to a test set."""

    features: str
    """Whose features they are compared by: Inception's (then these are IS, FID and KID), or those
    of a run's network."""
    samples: int
    temperature: float
    solving: Solving | None
    """Of velocities."""
    inception_score: float
    frechet_distance: float
    kernel_distance: float
    precision: float
    """The share of samples that lie among data (Kynkäänniemi et al. 2019)."""
    recall: float
    """The share of data that lie among samples."""


class Samples(torch_fidelity.GenerativeModelBase):  # type: ignore[misc]
    """A sampler as a generator of images, as bytes (B, C, H, W); classes take turns."""

    z_type = "normal"
    num_classes = 0  # the library would draw labels, which fails with NumPy from 1.24 on
    z_size = 0

    def __init__(self, sampler: Sampler, temperature: float, channels: int, count: int) -> None:
        """`count` samples are asked for, and again for each network whose features are."""
        super().__init__()
        self.sampler, self.temperature, self.channels = sampler, temperature, channels
        self.z_size = math.prod(sampler.sizes)
        self.made, self.count = 0, count

    def forward(self, noise: Tensor) -> Tensor:
        """Standard normal numbers (B, z_size) → images."""
        numbers = torch.arange(self.made, self.made + len(noise)) % self.count
        self.made += len(noise)
        scaled = self.temperature * noise.float().view(-1, *self.sampler.sizes)
        images = self.sampler.images(scaled, in_turn(self.sampler, numbers))
        return coloured(as_bytes(images), self.channels).to(noise.device)


def coloured(images: Tensor, channels: int) -> Tensor:
    """Grey images (B, 1, H, W) in so many channels; those in colour as they are."""
    return images.expand(-1, channels, -1, -1) if images.shape[1] == 1 else images


class Held(Dataset[Tensor]):
    """Images as bytes (N, C, H, W)."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def classifier_features(
    trained: Trained, device: torch.device, sizes: tuple[int, ...]
) -> type[FeatureExtractorBase]:
    """The class of an extractor of what a run's classifier reads its logits from, and of those, for
    images of these sizes. Raises `SpecError` for a run of another task, whose head ends in no
    linear layer, or of other images."""
    loaded = trained.loaded
    assert isinstance(trained.model, BaseNetwork)
    last = next(reversed(list(trained.model.head.children())), None)
    if not isinstance(loaded.spec.task, Classify) or not isinstance(last, nn.Linear):
        message = (
            f"the run in {trained.folder.path} is no classifier whose head ends in a linear layer"
        )
        help = "`archspec train vit_digits` makes one; features are those of a run of the same data"
        raise SpecError([Diagnostic("E604", message, None, help)])
    if loaded.spec.input.sizes != sizes:
        found, wanted = ("×".join(map(str, each)) for each in (loaded.spec.input.sizes, sizes))
        message = (
            f"the run in {trained.folder.path} is of images of {found}, and these are {wanted}"
        )
        raise SpecError([Diagnostic("E604", message)])
    model, prepare, final = trained.model.to(device), preparation(loaded), last

    class ClassifierFeatures(FeatureExtractorBase):  # type: ignore[misc]
        """Of images as bytes (B, C, H, W)."""

        def __init__(self, name: str, features_list: Sequence[str], **settings: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            found: dict[str, Tensor] = {}

            def heard(module: nn.Module, given: Any, output: Tensor) -> None:
                found["features"], found["logits"] = given[0].flatten(1), output

            with final.register_forward_hook(heard):
                model(prepare(images.to(device)))
            return tuple(found[name].float() for name in self.features_list)

    return ClassifierFeatures


def preparation(loaded: Loaded) -> Any:
    """From images as bytes (B, C, H, W) to what the network of a spec sees. Raises `SpecError`."""
    recipe, entry = recipe_and_data(loaded)
    split = open_data(loaded, entry, recipe.seed).test
    return lambda images: split.prepare(images, torch.zeros(len(images)))[0]


def measure_fidelity(
    sampler: Sampler,
    images: Tensor,
    samples: int,
    temperature: float,
    features: Features,
    *,
    batch: int,
    device: torch.device,
) -> Fidelity:
    """So many samples beside images (N, C, H, W) of bytes, in as many channels, by the features of
    a network or else by Inception's. Raises `SpecError` where Inception's weights cannot be had,
    and for too few images."""
    check_enough(images)
    found = _calculated(
        Samples(sampler, temperature, images.shape[1], samples),
        images,
        features,
        input1_model_num_samples=samples,
        isc=True,
        kid=True,
        prc=True,
        kid_subset_size=min(KID_SUBSET, samples, len(images)),
        cuda=device.type == "cuda",
        batch_size=batch,
    )
    if not math.isfinite(found["frechet_inception_distance"]):
        raise TrainingError("the features of samples, or of data, are not finite")
    return Fidelity(
        features=features.name,
        samples=samples,
        temperature=temperature,
        solving=sampler.solving if isinstance(sampler, VelocitySampler) else None,
        inception_score=found["inception_score_mean"],
        frechet_distance=found["frechet_inception_distance"],
        kernel_distance=found["kernel_inception_distance_mean"],
        precision=found["precision"],
        recall=found["recall"],
    )


def measure_likeness(images: Tensor, others: Tensor, features: Features) -> Likeness:
    """As many images (N, C, H, W) of bytes beside others, on the CPU. Raises what
    `measure_fidelity` raises."""
    check_enough(images)
    channels = 3 if features.extractor is None else images.shape[1]
    first, second = (coloured(each, channels) for each in (images, others))
    registry = torch_fidelity.registry.DATASETS_REGISTRY
    registry.pop(_OTHERS, None)
    torch_fidelity.register_dataset(_OTHERS, lambda root, download: Held(second))
    found = _calculated(_OTHERS, first, features, prc=True, cuda=False)
    distance = found["frechet_inception_distance"]
    if not math.isfinite(distance):
        raise TrainingError("the features of images, or of what came back, are not finite")
    return Likeness(max(0.0, distance), found["precision"], found["recall"])


def check_enough(images: Tensor) -> None:
    """Raises `SpecError` for fewer than `FEWEST`."""
    if len(images) < FEWEST:
        message = (
            f"{len(images)} images are too few to compare others with: {FEWEST} are the fewest"
        )
        raise SpecError([Diagnostic("E602", message)])


def _calculated(
    first: object, images: Tensor, features: Features, **asked: object
) -> dict[str, float]:
    """torch-fidelity's metrics of a first input beside images. Raises `SpecError`."""
    registry = torch_fidelity.registry
    registry.DATASETS_REGISTRY.pop(_TEST_SET, None)
    torch_fidelity.register_dataset(_TEST_SET, lambda root, download: Held(images))
    extractor = {}
    if features.extractor is not None:
        registry.FEATURE_EXTRACTORS_REGISTRY.pop(_NETWORK, None)
        torch_fidelity.register_feature_extractor(_NETWORK, features.extractor)
        extractor = {"feature_extractor": _NETWORK}
    try:
        found: dict[str, float] = torch_fidelity.calculate_metrics(
            input1=first,
            input2=_TEST_SET,
            fid=True,
            cache=False,  # its names know nothing of weights
            save_cpu_ram=True,  # no processes that read
            rng_seed=SEED,
            verbose=False,
            **asked,
            **extractor,
        )
    except OSError as error:  # of a download too
        if features.extractor is not None:
            raise
        raise SpecError([_no_weights(error)]) from None
    return found


def _no_weights(error: Exception) -> Diagnostic:
    message = f"the weights of Inception and VGG16 cannot be downloaded: {error}"
    help = (
        "compare by a classifier of your own: `archspec train vit_digits`, and then `--features "
        "runs/vit_digits`"
    )
    return Diagnostic("E601", message, None, help)
