"""RoMa's network (Edstedt et al., RoMa: Robust Dense Feature Matching, CVPR 2024, arXiv 2305.15404).

Encode: a transformer's coarse features and a VGG pyramid's fine ones. Match: a Gaussian process regresses where
each coarse token lies in the other image, a transformer turns that into a probability over anchors, refiners
move the warp at strides 16 to 1. Warps are (x, y) in [-1, 1], the borders of the outer pixels. Tensor names are
those of the published files, with the coarse trunk under `trunk`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiepoint.networks.folding import fold_batch_norms
from tiepoint.networks.linear import Linear
from tiepoint.networks.local_correlation import local_correlation, sample_at
from tiepoint.networks.residual_trunk import ResidualTrunk, TrunkConfig
from tiepoint.networks.vgg import VggPyramid
from tiepoint.networks.vit import Block, VisionTransformer, VitConfig
from tiepoint.networks.winograd import make_faster

COARSE = 16  # the name of the coarsest scale; DINOv2's stride is 14
KERNEL_TEMPERATURE = 0.2  # of the Gaussian process's cosine kernel
GP_NOISE = 0.1  # its variance of the observations
TRAINING_SIDE_PX = 560  # displacements are embedded relative to this size
KEPT_BYTES = 32 << 20  # the allocator returns larger blocks to the system, and getting them back is slow
STRIP_BYTES = 4 << 20
SIZE_MULTIPLE_PX = 56  # sides that both DINOv2's 14-pixel patches and the pyramid's stride 8 divide


@dataclass(frozen=True, kw_only=True)
class RomaConfig:
    """A RoMa network; the defaults are the published one. Mappings go by scale: 16, 8, 4, 2, 1.

    feature_dims: channels of the projected maps that are matched.
    correlation_radii: cells around the warp that a refiner correlates with; no entry, no correlation.
    displacement_dims: channels of a refiner's displacement embedding.
    hidden_blocks: a refiner's blocks after its first.
    anchors_per_side: the coordinate decoder classifies into the squares of this grid.
    rim_wraps: whether, on the rim of that grid, an anchor's neighbours wrap round to the opposite edge. The
        published decoder has this fault, and its weights are used with it; elsewhere they are left out.
    """

    trunk: VitConfig | TrunkConfig = field(default_factory=VitConfig)
    vgg_widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    feature_dims: Mapping[int, int] = field(default_factory=lambda: {16: 512, 8: 512, 4: 256, 2: 64, 1: 9})
    gp_dim: int = 512
    decoder_blocks: int = 5
    decoder_heads: int = 8
    anchors_per_side: int = 64
    rim_wraps: bool = True
    correlation_radii: Mapping[int, int] = field(default_factory=lambda: {16: 7, 8: 3, 4: 2})
    displacement_dims: Mapping[int, int] = field(default_factory=lambda: {16: 128, 8: 64, 4: 32, 2: 16, 1: 6})
    hidden_blocks: int = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Pyramid:
    """All that matching needs of a batch of images of one size.

    size: (H, W) in pixels.
    maps: {scale: (B, feature_dims, h, w)}; the scale 16 is absent where only refining follows.
    posterior: (B, tokens, gp_dim) float32, (K + noise I)^-1 E, the Gaussian process's share of this image as
        the target; None without the scale 16.
    """

    size: tuple[int, int]
    maps: dict[int, Tensor]
    posterior: Tensor | None


@dataclass(frozen=True, eq=False, kw_only=True)
class CoarseMatch:
    """What the coordinate decoder says, tokens row-major.

    logits: (B, tokens, anchors) float32. certainty: (B, 1, h, w) logit. warp: (B, 2, h, w), without gradient.
    """

    logits: Tensor
    certainty: Tensor
    warp: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Refinement:
    """The warp (B, 2, h, w) and certainty logit (B, 1, h, w), float32, after the refiner of `scale`."""

    scale: int
    warp: Tensor
    certainty: Tensor


def pixel_grid(size: Sequence[int], like: Tensor) -> Tensor:
    """(1, 2, H, W) float32 on the device of `like`, the (x, y) of the pixel centres of `size` (H, W) in [-1, 1]."""
    height, width = size
    x = (torch.arange(width, device=like.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=like.device) * 2 + 1) / height - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]


def decode_anchors(logits: Tensor, *, rim_wraps: bool) -> Tensor:
    """The mean of the best anchor and its four neighbours, weighted by probability; RoMa, section 3.2.

    logits: (..., K * K), anchors row-major. Returns (..., 2), (x, y) in [-1, 1]; no gradient.
    """
    logits = logits.detach()
    side = math.isqrt(logits.shape[-1])
    best = logits.argmax(-1, keepdim=True)
    steps = torch.tensor([0, -1, 1, -side, side], device=logits.device)
    near = best + steps
    inside = (near >= 0) & (near < side * side)
    near = near.clamp(0, side * side - 1)
    values = logits.gather(-1, near)
    if not rim_wraps:
        same_row = (near // side == best // side) | (steps.abs() == side)
        values = values.masked_fill(~(inside & same_row), -torch.inf)
    centres = torch.stack([near % side, near // side], -1) * (2 / side) + (1 / side - 1)
    return (values.softmax(-1)[..., None] * centres).sum(-2)


class GaussianProcess(nn.Module):
    """Regresses the embedded position in the other image from features alone; RoMa, section 3.2 (from DKM)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pos_conv = nn.Conv2d(2, dim, 1)

    def posterior(self, features: Tensor) -> Tensor:
        """(K + noise I)^-1 E of a target's features (B, C, h, w): (B, h w, dim), float32."""
        positions = torch.cos(8 * math.pi * self.pos_conv(pixel_grid(features.shape[-2:], features)))
        embedded = positions.flatten(2).transpose(1, 2).expand(len(features), -1, -1)
        kernel = self._kernel(features, features)
        kernel = kernel + GP_NOISE * torch.eye(kernel.shape[-1], device=kernel.device)
        return torch.cholesky_solve(embedded, torch.linalg.cholesky(kernel))

    def forward(self, features0: Tensor, features1: Tensor, posterior1: Tensor) -> Tensor:
        """The posterior mean at image 0's tokens, (B, h w, dim)."""
        return self._kernel(features0, features1) @ posterior1

    @staticmethod
    def _kernel(features0: Tensor, features1: Tensor) -> Tensor:
        a, b = (F.normalize(f.float().flatten(2), dim=1) for f in (features0, features1))
        return torch.exp((a.transpose(1, 2) @ b - 1) / KERNEL_TEMPERATURE)


class CoordinateDecoder(nn.Module):
    """Transformer over image 0's tokens to a logit for each anchor and one of certainty."""

    def __init__(self, dim: int, num_blocks: int, num_heads: int, num_anchors: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, num_heads, qkv_bias=False, layer_scale=False) for _ in range(num_blocks))
        self.to_out = Linear(dim, num_anchors + 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, dim) to logits (B, N, anchors) and certainty (B, N)."""
        for block in self.blocks:
            tokens = block(tokens)
        out = self.to_out(tokens)
        return out[..., :-1], out[..., -1]


class RefinerBlock(nn.Sequential):
    """Depthwise 5 x 5 convolution, batch normalisation, ReLU, 1 x 1 convolution; (B, width, H, W) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.BatchNorm2d(width, momentum=0.01),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.nbytes < KEPT_BYTES or x.device.type != "cpu" or len(x) > 1 or torch.is_grad_enabled():
            for layer in self:
                x = layer(x)
            return x
        return self._in_strips(x)

    def _in_strips(self, x: Tensor) -> Tensor:
        """The same in strips of rows that stay in the cache, each with two rows more on either side."""
        height = x.shape[-2]
        rows = max(1, STRIP_BYTES * height // x.nbytes)
        out = torch.empty_like(x)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            above = min(2, top)
            hidden = self[0](x[:, :, top - above : bottom + 2])[:, :, above : above + bottom - top]
            for layer in (self[1], self[2], self[3]):
                hidden = layer(hidden)
            out[:, :, top:bottom] = hidden
        return out


class Refiner(nn.Module):
    """Moves a warp at one scale, from both images' features there; RoMa, section 3.3 (from DKM)."""

    def __init__(self, feature_dim: int, displacement_dim: int, radius: int | None, hidden_blocks: int) -> None:
        super().__init__()
        self.radius = radius
        window = 0 if radius is None else (2 * radius + 1) ** 2
        width = 2 * feature_dim + displacement_dim + window
        self.disp_emb = nn.Conv2d(2, displacement_dim, 1)
        self.block1 = RefinerBlock(width)
        self.hidden_blocks = nn.Sequential(*(RefinerBlock(width) for _ in range(hidden_blocks)))
        self.out_conv = nn.Conv2d(width, 3, 1)

    def forward(self, map0: Tensor, map1: Tensor, warp: Tensor, size_factor: float) -> Tensor:
        """Maps (B, C, h, w) of both images and warp (B, 2, h, w) to (B, 3, h, w): step in x, in y, certainty.

        size_factor: the finest size relative to that of training.
        """
        displacement = warp - pixel_grid(warp.shape[-2:], warp)
        parts = [map0, sample_at(map1, warp), self.disp_emb(1.25 * size_factor * displacement)]
        if self.radius is not None:
            parts.append(local_correlation(map0, map1, warp, self.radius))
        dtype = self.block1[0].weight.dtype
        stacked = torch.cat([part.permute(0, 2, 3, 1).to(dtype) for part in parts], -1).permute(0, 3, 1, 2)
        hidden = self.hidden_blocks(self.block1(stacked))
        return cast(Tensor, self.out_conv(hidden.to(self.out_conv.weight.dtype)))


class Encoder(nn.Module):
    """Holds the fine pyramid under its published name."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.cnn = VggPyramid(widths)


class Decoder(nn.Module):
    """All that follows the two backbones, under the published names."""

    def __init__(self, config: RomaConfig, backbone_dims: Mapping[int, int]) -> None:
        super().__init__()
        dims = config.feature_dims
        token_dim = config.gp_dim + dims[COARSE]
        self.embedding_decoder = CoordinateDecoder(
            token_dim, config.decoder_blocks, config.decoder_heads, config.anchors_per_side**2
        )
        self.gps = nn.ModuleDict({str(COARSE): GaussianProcess(config.gp_dim)})
        self.proj = nn.ModuleDict(
            {
                str(scale): nn.Sequential(nn.Conv2d(backbone_dims[scale], dim, 1), nn.BatchNorm2d(dim))
                for scale, dim in dims.items()
            }
        )
        self.conv_refiner = nn.ModuleDict(
            {
                str(scale): Refiner(
                    dim,
                    config.displacement_dims[scale],
                    config.correlation_radii.get(scale),
                    config.hidden_blocks,
                )
                for scale, dim in dims.items()
            }
        )


class RomaNetwork(nn.Module):
    """RoMa. `encode` each image, then `match` from image 0 to image 1; `match` the other way for symmetry."""

    def __init__(self, config: RomaConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = (
            VisionTransformer(config.trunk) if isinstance(config.trunk, VitConfig) else ResidualTrunk(config.trunk)
        )
        self.encoder = Encoder(config.vgg_widths)
        backbone_dims = {COARSE: self.trunk.dim, **dict(zip((1, 2, 4, 8), config.vgg_widths, strict=True))}
        self.decoder = Decoder(config, backbone_dims)

    def encode(self, images: Tensor, *, coarse: bool = True) -> Pyramid:
        """Images (B, 3, H, W), normalised by ImageNet's mean and deviation, sides multiples of 56 if `coarse`.

        coarse: whether to run the trunk; without it the pyramid serves `refine` alone.
        """
        height, width = images.shape[-2:]
        images = images.to(self._dtype).contiguous(memory_format=torch.channels_last)
        backbone: dict[int, Tensor] = self.encoder.cnn(images)
        if coarse:
            backbone[COARSE] = self.trunk(images).float()
        maps = {scale: self.decoder.proj[str(scale)](features) for scale, features in backbone.items()}
        posterior = self._gp.posterior(maps[COARSE]) if coarse else None
        return Pyramid(size=(height, width), maps=maps, posterior=posterior)

    def coarse_match(self, pyramid0: Pyramid, pyramid1: Pyramid) -> CoarseMatch:
        """Where image 0's coarse tokens lie in image 1, by Gaussian process, transformer and anchors."""
        features0 = pyramid0.maps[COARSE]
        assert pyramid1.posterior is not None
        height, width = features0.shape[-2:]
        mean = self._gp(features0, pyramid1.maps[COARSE], pyramid1.posterior)
        tokens = torch.cat([mean, features0.flatten(2).transpose(1, 2).to(mean.dtype)], -1)
        logits, certainty = self.decoder.embedding_decoder(tokens)
        warp = decode_anchors(logits, rim_wraps=self.config.rim_wraps)
        return CoarseMatch(
            logits=logits,
            certainty=certainty.reshape(-1, 1, height, width),
            warp=warp.reshape(-1, height, width, 2).permute(0, 3, 1, 2),
        )

    def refine(
        self, pyramid0: Pyramid, pyramid1: Pyramid, warp: Tensor, certainty: Tensor, scales: Sequence[int]
    ) -> list[Refinement]:
        """A warp and certainty logit at any size, refined from coarse to fine at each of `scales`."""
        height, width = pyramid0.size
        size_factor = math.sqrt(height * width) / TRAINING_SIDE_PX
        finest = warp.new_tensor([width, height]).view(1, 2, 1, 1)
        steps = []
        for scale in scales:
            map0, map1 = pyramid0.maps[scale], pyramid1.maps[scale]
            # Each refiner learns from its own error alone: no gradient passes between scales.
            warp, certainty = (resized(x.detach(), map0.shape[-2:]) for x in (warp, certainty))
            change = self.decoder.conv_refiner[str(scale)](map0, map1, warp, size_factor)
            warp = warp + change[:, :2] * (scale / 4) / finest
            certainty = certainty + change[:, 2:]
            steps.append(Refinement(scale=scale, warp=warp, certainty=certainty))
        return steps

    def match(
        self, pyramid0: Pyramid, pyramid1: Pyramid, fine: tuple[Pyramid, Pyramid] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Warp (B, 2, H, W) and certainty in [0, 1] (B, H, W) of image 0's pixels in image 1.

        fine: both images' pyramids at a larger size, for a second pass of the refiners 8 to 1 there.
        """
        coarse = self.coarse_match(pyramid0, pyramid1)
        steps = self.refine(pyramid0, pyramid1, coarse.warp, coarse.certainty, (16, 8, 4, 2, 1))
        first, last = steps[0], steps[-1]
        if fine is not None:
            last = self.refine(*fine, last.warp, last.certainty, (8, 4, 2, 1))[-1]
        # Where the coarse stage was unsure, half of its doubt is taken back: the refiners know better.
        doubt = resized(first.certainty, last.certainty.shape[-2:]).clamp(max=0)
        certainty = (last.certainty - 0.5 * doubt)[:, 0].sigmoid()
        outside = (last.warp.abs() > 1).any(1)
        return last.warp.clamp(-1, 1), certainty.masked_fill(outside, 0)

    def prepare_inference(self, dtype: torch.dtype) -> RomaNetwork:
        """Fold and lay out the network for speed, in place; the wide layers compute in `dtype`.

        What the Gaussian process reads and computes, the transformers' residual streams and norms, and the
        layers that end in a logit or a step stay in float32.
        """
        self.eval().requires_grad_(False)
        fold_batch_norms(self)
        for module in self.modules():
            if isinstance(module, Block):
                module.fold_layer_scale()
        exact = (self.decoder.proj[str(COARSE)], self.decoder.gps, self.decoder.embedding_decoder.to_out)
        kept = {id(layer) for module in exact for layer in module.modules()}
        for refiner in self.decoder.conv_refiner.values():
            assert isinstance(refiner, Refiner)
            kept |= {id(refiner.disp_emb), id(refiner.out_conv)}
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and id(module) not in kept:
                module.to(dtype)
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        make_faster(self)
        return self

    @property
    def _gp(self) -> GaussianProcess:
        return cast(GaussianProcess, self.decoder.gps[str(COARSE)])

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w) at `size` (H, W), bilinear."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
