"""The named checkpoints: where they come from, what they may be used for, how to recognise them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """One checkpoint. How a network must be set up for it is declared beside the network, under this name.

    name: what a user asks for.
    method: the method of the matchers' catalogue that takes it.
    file_name: the file as published; one of this name in the cache or in TIEPOINT_WEIGHTS is found offline.
    url: where it is fetched from, or None when it is shipped in the package or must be fetched by hand.
    size_bytes, sha256: of the file, None where not known.
    licence: of the weights.
    commercial_use: whether that licence allows it; terms of the training data, where they are known, are in `note`.
    source: paper and publisher.
    note: what a user should know: training data, preset, flags, known faults.
    shipped: whether the file is in this package (weights/shipped).
    git_sha1: the file's object name in its publisher's git repository, checked where `sha256` is unknown.
    md5: of the file, where its publisher states no other; against damage, not against malice.
    """

    name: str
    method: str
    file_name: str
    url: str | None
    size_bytes: int | None
    sha256: str | None
    licence: str
    commercial_use: bool
    source: str
    note: str
    shipped: bool = False
    git_sha1: str | None = None
    md5: str | None = None


_MAGIC_LEAP = (
    "Magic Leap SuperPoint/SuperGlue licence: academic and non-profit research only, no commercial use, "
    "no redistribution"
)


def _ours(name: str, method: str, size_bytes: int, sha256: str, note: str) -> WeightsEntry:
    """Weights trained here, on photographs whose licences are free; their card lies beside them."""
    return WeightsEntry(
        name=name,
        method=method,
        file_name=f"{name}.safetensors",
        url=None,
        size_bytes=size_bytes,
        sha256=sha256,
        licence="Apache-2.0",
        commercial_use=True,
        source=f"this project; settings, data and figures in weights/shipped/{name}.json",
        note=note,
        shipped=True,
    )


_SUPERPOINT = (
    _ours(
        "tiepoint-superpoint",
        "superpoint",
        2_569_788,
        "03557c82d199ba76442fab3b33414a2b475b60fc92029360bae2b1ffbfbc3acc",
        "D = 128, convolution-ReLU-BatchNorm, 2,400, 2,000 and 1,600 steps from 671 photographs, views turned to 45 "
        "degrees. Preset: long side 640 px, 1024 keypoints, suppression radius 4 px, threshold 0.015, sub-pixel "
        "keypoints.",
    ),
    WeightsEntry(
        name="magicleap-superpoint",
        method="superpoint",
        file_name="superpoint_v1.pth",
        url="https://github.com/magicleap/SuperGluePretrainedNetwork/raw/master/models/weights/superpoint_v1.pth",
        size_bytes=5_206_086,
        sha256="52b6708629640ca883673b5d5c097c4ddad37d8048b33f09c8ca0d69db12c40e",
        licence=_MAGIC_LEAP,
        commercial_use=False,
        source="DeTone, Malisiewicz, Rabinovich: SuperPoint (CVPR Workshops 2018); Magic Leap",
        note=(
            "D = 256, no batch normalisation, trained on COCO. Preset: long side 640 px, 1024 keypoints, "
            "suppression radius 4 px, threshold 0.005, border 4 px. Legacy descriptor sampler, which "
            "SuperGlue's weights were trained with and which drifts by up to 3.5 px across a 640 px image."
        ),
        git_sha1="107a444ca318d487390137d619d49f2f0a3b1ad8",
    ),
    WeightsEntry(
        name="open-superpoint",
        method="superpoint",
        file_name="superpoint_v6_from_tf.pth",
        url="https://github.com/rpautrat/SuperPoint/raw/master/weights/superpoint_v6_from_tf.pth",
        size_bytes=None,
        sha256=None,
        licence="MIT",
        commercial_use=True,
        source="Rémi Pautrat's SuperPoint (github.com/rpautrat/SuperPoint), converted from TensorFlow",
        note=(
            "D = 256, convolution-ReLU-BatchNorm, trained on COCO. Preset: long side 640 px, 1024 keypoints, "
            "suppression radius 4 px, threshold 0.005, border 4 px. Exact descriptor sampler."
        ),
        git_sha1="f645e8db1b10a7be84d4e50d67a3c64dd240a49a",
    ),
    WeightsEntry(
        name="gauss2-superpoint",
        method="superpoint",
        file_name="superPointNet_170000_checkpoint.pth.tar",
        url=(
            "https://github.com/eric-yyjau/pytorch-superpoint/raw/master/"
            "logs/superpoint_coco_heat2_0/checkpoints/superPointNet_170000_checkpoint.pth.tar"
        ),
        size_bytes=None,
        sha256=None,
        licence="MIT",
        commercial_use=True,
        source="You-Yi Jau and Rui Zhu's pytorch-superpoint (github.com/eric-yyjau/pytorch-superpoint)",
        note=(
            "D = 256, convolution-BatchNorm-ReLU, trained on COCO for 170,000 iterations. Preset: long side "
            "640 px, 1024 keypoints, suppression radius 4 px, threshold 0.015, border 4 px, sub-pixel "
            "keypoints. Its publisher samples descriptors with 2x/W - 1 and align_corners True; the exact "
            "sampler is used here."
        ),
        git_sha1="a6de43741db7fe038aed600e64b3554b02f7572d",
    ),
)

_SUPERGLUE = (
    _ours(
        "tiepoint-superglue",
        "superpoint+superglue",
        6_159_340,
        "7b46bb18c014a86030596b07a0983ae45316e77702410b83c329000107f775ba",
        "Over tiepoint-superpoint, D = 128, 1,050, 500 and 400 steps from 671 photographs, views turned to 45 degrees: "
        "beyond that, four-way. Match threshold 0.2, 100 Sinkhorn iterations.",
    ),
    _ours(
        "tiepoint-superglue-sift",
        "sift+superglue",
        6_159_340,
        "a075d92fb079f26c315bacaacd941393bf0ebff1bb6b6ca73a42910d5c38de72",
        "Over SIFT, D = 128, 700 steps of 4 pairs from 671 photographs, views turned by any angle. Match "
        "threshold 0.2, 100 Sinkhorn iterations.",
    ),
    WeightsEntry(
        name="magicleap-superglue-indoor",
        method="superpoint+superglue",
        file_name="superglue_indoor.pth",
        url="https://github.com/magicleap/SuperGluePretrainedNetwork/raw/master/models/weights/superglue_indoor.pth",
        size_bytes=None,
        sha256="0e710469be25ebe1e2ccf68edcae8b2945b0617c8e7e68412251d9d47f5052b1",
        licence=_MAGIC_LEAP,
        commercial_use=False,
        source="Sarlin, DeTone, Malisiewicz, Rabinovich: SuperGlue (CVPR 2020); Magic Leap",
        note=(
            "Over magicleap-superpoint, trained on ScanNet. Preset: long side 640 px, 1024 keypoints, "
            "suppression radius 4 px, threshold 0.005, match threshold 0.2, 100 Sinkhorn iterations. Holds "
            "to about 45 degrees of rotation in the image plane: beyond that, four-way. Pose AUC@5/10/20 on "
            "ScanNet 1500: 16.1/33.8/51.8."
        ),
        git_sha1="2b54532f1b7321505cac79ee3a2863ef2ab2d163",
    ),
    WeightsEntry(
        name="magicleap-superglue-outdoor",
        method="superpoint+superglue",
        file_name="superglue_outdoor.pth",
        url="https://github.com/magicleap/SuperGluePretrainedNetwork/raw/master/models/weights/superglue_outdoor.pth",
        size_bytes=None,
        sha256="2f5f5e9bb3febf07b69df633c4c3ff7a17f8af26a023aae2b9303d22339195bd",
        licence=_MAGIC_LEAP,
        commercial_use=False,
        source="Sarlin, DeTone, Malisiewicz, Rabinovich: SuperGlue (CVPR 2020); Magic Leap",
        note=(
            "Over magicleap-superpoint, trained on MegaDepth. Preset: long side 1600 px, 2048 keypoints, "
            "suppression radius 3 px, threshold 0.005, match threshold 0.2, 100 Sinkhorn iterations. Holds "
            "to about 45 degrees of rotation in the image plane: beyond that, four-way. Pose AUC@5/10/20 on "
            "YFCC: 39.0/59.5/75.7."
        ),
        git_sha1="5ca3392bd5349790d7bc1c246961fc041b88c1e8",
    ),
)

_LOFTR_FOLDER = "by hand from drive.google.com/drive/folders/1xu2Pq6mZT5hmFgiYMBT9Zt8h1yO-3SIp"
_LOFTR_SOURCE = "Sun, Shen, Wang, Bao, Zhou: LoFTR (CVPR 2021)"
_KORNIA_LOFTR = "https://huggingface.co/kornia/loftr/resolve/main/"


def _loftr(name: str, file_name: str, size_bytes: int | None, note: str, *, hosted: bool = False) -> WeightsEntry:
    """Weights of the published network; `hosted` by kornia, or in the authors' folder."""
    return WeightsEntry(
        name=name,
        method="loftr",
        file_name=file_name,
        url=_KORNIA_LOFTR + file_name if hosted else None,
        size_bytes=size_bytes,
        sha256=None,
        licence="Apache-2.0",
        commercial_use=True,
        source=f"{_LOFTR_SOURCE}; hosted by kornia" if hosted else f"{_LOFTR_SOURCE}; {_LOFTR_FOLDER}",
        note=note,
    )


_LOFTR_OUTDOOR = "Trained on MegaDepth: old position code, corner frame, 2 border cells dropped, long side 840. "
_LOFTR_INDOOR = "Trained on ScanNet, whose terms allow research only: corner frame, no border dropped, 640 x 480. "

_LOFTR: tuple[WeightsEntry, ...] = (
    _ours(
        "tiepoint-loftr",
        "loftr",
        3_155_144,
        "f3338d9a0de95f755bcaf1f394c1102c5322ca0bbe5b007be75e6160c0dbd571",
        "The small configuration, dual softmax, 1,100 and then 3,200 steps of 4 pairs of 128 x 160 from 671 "
        "photographs, views turned to 45 degrees and placed anywhere in 640 x 640 px. Works at 960 px.",
    ),
    _loftr(
        "loftr-outdoor-ds",
        "outdoor_ds.ckpt",
        46_341_978,
        _LOFTR_OUTDOOR + "Dual softmax. Pose AUC@5/10/20 on MegaDepth 1500: 52.8/69.2/81.2.",
    ),
    _loftr(
        "loftr-outdoor-ot",
        "outdoor_ot.ckpt",
        46_342_243,
        _LOFTR_OUTDOOR + "Optimal transport. Pose AUC@5/10/20 on MegaDepth 1500: 50.3/67.1/79.9.",
    ),
    _loftr(
        "loftr-indoor-ds",
        "indoor_ds.ckpt",
        None,
        _LOFTR_INDOOR + "Dual softmax, old position code. Pose AUC@5/10/20 on ScanNet 1500: 22.1/40.8/57.6.",
    ),
    _loftr(
        "loftr-indoor-ds-new",
        "indoor_ds_new.ckpt",
        46_355_053,
        _LOFTR_INDOOR + "Dual softmax, fixed position code. Pose AUC@5/10/20 on ScanNet 1500: 22.5/41.2/57.8.",
    ),
    _loftr(
        "loftr-indoor-ot",
        "indoor_ot.ckpt",
        46_342_243,
        _LOFTR_INDOOR + "Optimal transport, old position code. Pose AUC@5/10/20 on ScanNet 1500: 21.5/40.4/58.0.",
    ),
    _loftr("loftr-kornia-outdoor", "loftr_outdoor.ckpt", None, _LOFTR_OUTDOOR + "Dual softmax.", hosted=True),
    _loftr(
        "loftr-kornia-indoor",
        "loftr_indoor.ckpt",
        None,
        _LOFTR_INDOOR + "Dual softmax, old position code.",
        hosted=True,
    ),
    _loftr(
        "loftr-kornia-indoor-new",
        "loftr_indoor_ds_new.ckpt",
        None,
        _LOFTR_INDOOR + "Dual softmax, fixed position code.",
        hosted=True,
    ),
)

_ROMA_RELEASE = "https://github.com/Parskatt/storage/releases/download/roma/"
_ROMA_LICENCE = "MIT (the repository that publishes the file; the weights have no licence text of their own)"
_ROMA = (
    _ours(
        "tiepoint-roma-small",
        "roma-small",
        14_060_498,
        "7d5eb96ba766757ec12a6b8fd6b80d8ed0a85cb363d4762bfbf53a8f5fc57572",
        "1,250 steps of 4 pairs of 112 x 112, then 2,050 of 224 x 224, from 671 photographs, views turned to 45 "
        "degrees, a seventh of the pairs unrelated. Coarse match at 224 px, refined at 448.",
    ),
    WeightsEntry(
        name="roma_outdoor",
        method="roma",
        file_name="roma_outdoor.pth",
        url=_ROMA_RELEASE + "roma_outdoor.pth",
        size_bytes=445_647_516,
        sha256="c7a45c80d41ad788a63c641d1b686d7cb3f297f40097c6f4e75039889e5cc8ba",
        licence=_ROMA_LICENCE,
        commercial_use=True,
        source="Edstedt, Sun, Bökman, Wadenbäck, Felsberg: RoMa (CVPR 2024); Johan Edstedt",
        note=(
            "Needs dinov2_vitl14 too. Trained on MegaDepth at 560 x 560. Preset: 560, second pass at 864. The "
            "decoder's anchors wrap round at the rim, as they did in training. Pose AUC@5/10/20 on MegaDepth "
            "1500: 62.6/76.7/86.3 (672, second pass at 1344)."
        ),
    ),
    WeightsEntry(
        name="roma_indoor",
        method="roma",
        file_name="roma_indoor.pth",
        url=_ROMA_RELEASE + "roma_indoor.pth",
        size_bytes=None,
        sha256=None,
        licence=_ROMA_LICENCE,
        commercial_use=True,
        source="Edstedt, Sun, Bökman, Wadenbäck, Felsberg: RoMa (CVPR 2024); Johan Edstedt",
        note=(
            "Needs dinov2_vitl14 too. Trained on MegaDepth and ScanNet at 560 x 560. Preset: 560, second pass "
            "at 864. The decoder's anchors wrap round at the rim, as they did in training. "
            "Pose AUC@5/10/20 on ScanNet 1500: 31.8/53.4/70.9."
        ),
        md5="349a17aaa21883bb164b1a5884febb21",
    ),
    WeightsEntry(
        name="dinov2_vitl14",
        method="roma's coarse trunk",
        file_name="dinov2_vitl14_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        size_bytes=1_217_586_395,
        sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        licence="Apache-2.0",
        commercial_use=True,
        source="Oquab et al.: DINOv2 (TMLR 2024); Meta AI",
        note="ViT-L/14 without registers. Not a matcher: roma_outdoor and roma_indoor are used with it.",
    ),
)

_RELF_SHARE = (
    "Not to be fetched by a program: the publisher's README (github.com/bluedream1121/RELF) links a share with a "
    "password. Bring the file and run `tiepoint weights import FILE`. "
)

_RELF = (
    _ours(
        "tiepoint-relf",
        "relf",
        2_501_280,
        "4fceada2e301af25ea9fffcedd1ad08a70044df80bdfc79c0768e201fff29621",
        "re_resnet over C16, 350 and 3,000 steps of 4 pairs of 128 x 160 from 671 photographs, views turned by any "
        "angle. The corrected preprocessing; one level of at most 1024 px, sides of 16 k + 1, candidates of 0.6.",
    ),
    WeightsEntry(
        name="official-relf",
        method="relf",
        file_name="best_model.pt",
        url=None,
        size_bytes=None,
        sha256=None,
        licence="MIT",
        commercial_use=True,
        source="Lee, Kim, Kim, Cho: Learning Rotation-Equivariant Features (CVPR 2023); github.com/bluedream1121/RELF",
        note=(
            _RELF_SHARE + "re_resnet over C16, trained on COCO. Preset: ImageNet mean and deviation, pyramid of nine "
            "levels from 1024 to 256 px, candidates of 0.6. MMA@3/5/10 in its README: Roto-360 91.7/92.8/94.3, "
            "HPatches viewpoint 67.5/74.6/81.1, illumination 65.4/73.0/80.2. Trained on another normalisation than "
            "it is evaluated with, and on rotations to about 35 degrees."
        ),
    ),
    WeightsEntry(
        name="official-relf-wide",
        method="relf",
        file_name="best_model_wrn.pt",
        url=None,
        size_bytes=None,
        sha256=None,
        licence="MIT",
        commercial_use=True,
        source="Lee, Kim, Kim, Cho: Learning Rotation-Equivariant Features (CVPR 2023); github.com/bluedream1121/RELF",
        note=(
            _RELF_SHARE + "e2wrn16_8R over C8, ten times the arithmetic of official-relf. Its last block ends in "
            "trivial fields, so that its orientations do not turn with the image: for upright pictures alone. "
            "MMA@3/5/10 in its README: HPatches viewpoint 70.1/78.1/84.9, illumination 69.5/78.0/85.4."
        ),
    ),
)

WEIGHTS: dict[str, WeightsEntry] = {entry.name: entry for entry in (*_SUPERPOINT, *_SUPERGLUE, *_LOFTR, *_ROMA, *_RELF)}


def shipped_name(method: str) -> str | None:
    """The name of the weights that this package ships for `method`, or None where it ships none."""
    return next((e.name for e in WEIGHTS.values() if e.shipped and e.method == method), None)
