"""RELF against the published implementation: its outputs on shared made weights, and e2cnn's bases and filters."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiepoint.matchers.relf import PUBLISHED_CONFIG, Pyramid, RelfConfig, RelfExtractor  # noqa: E402
from tiepoint.matchers.relf_sampling import align, orientation_candidates, orientation_histogram  # noqa: E402
from tiepoint.matchers.relf_weights import from_published_names, model_from  # noqa: E402
from tiepoint.networks.group_convolution import FieldBatchNorm, GroupConv2d, inference_form  # noqa: E402
from tiepoint.networks.steerable_basis import SteerableKernels  # noqa: E402

PARITY = Path(__file__).parents[1] / "parity"
CASES = {
    "re_resnet_c16": ("stem", "layer1", "layer2", "layer3", "layer4"),
    "re_resnet_c8": ("stem", "layer1", "layer2", "layer3", "layer4"),
    "e2wrn16_8R_stl": ("group1", "group2", "group3"),
}


@pytest.fixture(scope="module")
def fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Case:
    """One parity case: its tensors, picture, keypoints and the network built from them."""

    def __init__(self, fill: ModuleType, name: str) -> None:
        self.fill = fill
        self.described, self.expected = fill.load_case(PARITY / "relf" / f"{name}.json")
        made = fill.make_weights(self.described["weights"], PARITY / "relf")
        self.state = {key: torch.from_numpy(value) for key, value in made.items()}
        inputs = fill.make_inputs(self.described["inputs"])
        self.image, self.keypoints = inputs["image"], inputs["keypoints"]
        self.model = model_from(self.state, name)

    def compare(self, output: str, found: torch.Tensor) -> None:
        self.fill.compare(self.described, self.expected, output, found.numpy())

    def features(self, config: RelfConfig) -> torch.Tensor:
        from tiepoint.images import Image

        extractor = RelfExtractor(self.model.network, None, config)
        return extractor.features_at(Image(self.image), self.keypoints)

    def input(self) -> torch.Tensor:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        pixels = torch.from_numpy(self.image.astype(np.float32)) / 255
        return ((pixels - mean) / std).permute(2, 0, 1)[None]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, fill: ModuleType) -> Case:
    return Case(fill, request.param)


def one_level(ratio: float | None = None) -> RelfConfig:
    return RelfConfig(published=True, pyramid=None, max_size_px=None, candidate_ratio=ratio)


def test_kernels(case: Case) -> None:
    network = case.model.network
    for output in case.described["outputs"]:
        if output.startswith("kernel_"):
            name = output.removeprefix("kernel_").replace("stem", "conv1")
            with torch.no_grad():
                case.compare(output, network.get_submodule(name).filter())


@pytest.mark.parametrize("form", ["training", "inference"])
def test_maps(case: Case, form: str) -> None:
    """Each stage, and what the published code fuses of them: every one resized to the first, coarsest first."""
    network = case.model.network if form == "training" else inference_form(case.model.network)
    with torch.no_grad():
        maps = network(case.input())
        fused = torch.cat(
            [
                torch.nn.functional.interpolate(stage, maps[0].shape[2:], mode="bilinear", align_corners=True)
                for stage in maps[::-1]
            ],
            dim=1,
        )
    for output, stage in zip(CASES[case.described["case"].removeprefix("relf/")], maps, strict=True):
        case.compare(output, stage[0])
    case.compare("fused", fused[0])
    case.compare("orientation", fused[0, : network.order])


def test_descriptors(case: Case) -> None:
    features = case.features(one_level())
    case.compare("sampled", features.flatten(1))
    keypoints, shifts = orientation_candidates(orientation_histogram(features), None)
    case.compare("shift", shifts)
    case.compare("aligned", align(features, keypoints, shifts))


def test_candidates(fill: ModuleType) -> None:
    case = Case(fill, "re_resnet_c16")
    features = case.features(one_level(0.6))
    keypoints, shifts = orientation_candidates(orientation_histogram(features), 0.6)
    case.compare("candidate_keypoints", torch.from_numpy(case.keypoints)[keypoints])
    case.compare("candidate_aligned", align(features, keypoints, shifts))


def test_pyramid(fill: ModuleType) -> None:
    case = Case(fill, "re_resnet_c16")
    features = case.features(RelfConfig(published=True, pyramid=Pyramid(max_size_px=512), max_size_px=None))
    case.compare("pyramid_sampled", features.flatten(1))
    keypoints, shifts = orientation_candidates(orientation_histogram(features), None)
    case.compare("pyramid_shift", shifts)
    case.compare("pyramid_aligned", align(features, keypoints, shifts))
    assert PUBLISHED_CONFIG.pyramid == Pyramid(max_size_px=1024, min_size_px=256, levels_per_octave=4)


def test_bases_of_the_published_order(fill: ModuleType) -> None:
    """Element by element: what a checkpoint without its bases is completed with."""
    del fill
    residual = {order: SteerableKernels(order=order, parametrisation="e2cnn") for order in (8, 16)}
    wide = SteerableKernels(order=8, cutoff_slope=0.8 * np.pi, ring_width_px=0.6, parametrisation="e2cnn")
    files = {"re_resnet_c16": residual[16], "re_resnet_c8": residual[8], "e2wrn16_8R_stl": wide}
    for file, kernels in files.items():
        with np.load(PARITY / "relf" / f"basis_{file}.npz") as bases:
            for name, basis in bases.items():
                source, _, target, size = name.split("_")
                np.testing.assert_allclose(kernels.basis(int(size[0]), source, target), basis, atol=5e-8)


def test_published_files_load_strictly(fill: ModuleType) -> None:
    from tiepoint.weights import WeightsError

    case = Case(fill, "re_resnet_c8")
    assert case.model.published
    saved_in_evaluation = {**case.state, "model.model.conv1.filter": torch.zeros(64, 3, 7, 7)}
    saved_in_parallel = {f"module.{key}": value for key, value in saved_in_evaluation.items()}
    without_bases = {key: value for key, value in case.state.items() if not key.endswith("sampled_basis")}
    for state in (saved_in_parallel, without_bases):
        network = model_from(state, "file").network
        with torch.no_grad():
            kernel = network.layer3[0].conv2.filter()
            assert torch.allclose(kernel, case.model.network.layer3[0].conv2.filter(), atol=1e-6)
    first = "model.model.layer1.0.conv1.weights"
    with pytest.raises(WeightsError, match=r"1 missing: layer1\.0\.conv1\.weights"):
        model_from({key: value for key, value in case.state.items() if key != first}, "file")
    with pytest.raises(WeightsError, match="unknown: more"):
        model_from({**case.state, "model.model.more": torch.zeros(1)}, "file")
    with pytest.raises(WeightsError, match="fits no RELF network"):
        model_from({"layer4.0.conv1.weights": torch.zeros(1)}, "file")
    assert "linear.weight" not in from_published_names(Case(fill, "e2wrn16_8R_stl").state)


# ---------------------------------------------------------------- e2cnn itself, where it is installed


class BooleanMasks:
    """A module whose `uint8` is `bool`: e2cnn 0.2.3 marks with bytes, which torch no longer indexes by."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.uint8 = module, module.bool

    def __getattr__(self, name: str) -> object:
        return getattr(self.module, name)


@pytest.fixture
def e2cnn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("e2cnn")
        import e2cnn.gspaces
        import e2cnn.nn  # noqa: F401
        from e2cnn.nn.modules.r2_conv import basisexpansion_singleblock as single_block
    monkeypatch.setattr(single_block, "torch", BooleanMasks(torch))
    monkeypatch.setattr(single_block, "np", BooleanMasks(np))
    return package


@pytest.mark.parametrize("order", [8, 16])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("source", ["trivial", "regular"])
@pytest.mark.filterwarnings("ignore")
def test_e2cnn_agrees(e2cnn: ModuleType, order: int, size: int, source: str) -> None:
    """Bases, filters, convolution and normalisation, on random weights."""
    torch.manual_seed(order + size)
    space = e2cnn.gspaces.Rot2dOnR2(order)
    representation = {"trivial": space.trivial_repr, "regular": space.regular_repr}[source]
    fields_in = e2cnn.nn.FieldType(space, [representation] * 3)
    fields_out = e2cnn.nn.FieldType(space, [space.regular_repr] * 2)
    theirs = e2cnn.nn.R2Conv(
        fields_in, fields_out, size, padding=size // 2, bias=False, frequencies_cutoff=lambda r: 3 * r
    )
    their_norm = e2cnn.nn.InnerBatchNorm(fields_out)
    kernels = SteerableKernels(order=order, cutoff_slope=3.0, parametrisation="e2cnn")
    ours = GroupConv2d(kernels, 3, 2, size, source=source)
    our_norm = FieldBatchNorm(2, order)

    basis = next(value for key, value in theirs.state_dict().items() if key.endswith("sampled_basis"))
    assert torch.allclose(ours.basis, basis, atol=1e-6)
    with torch.no_grad():
        weights = torch.randn_like(theirs.weights)
        theirs.weights.copy_(weights)
        ours.weights.copy_(weights)
        image = torch.randn(2, 3 * (order if source == "regular" else 1), 12, 15)
        expected = their_norm(theirs(e2cnn.nn.GeometricTensor(image, fields_in))).tensor
        found = our_norm(ours(image))
        assert torch.allclose(found, expected, atol=2e-5)
        theirs.eval()
        assert torch.allclose(ours.filter(), theirs.filter, atol=2e-6)
