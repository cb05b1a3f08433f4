"""Architectures of torchvision, narrow and shallow."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision.models as tv
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.video.resnet import BasicBlock as VideoBlock
from torchvision.models.video.resnet import BasicStem, Conv2Plus1D, Conv3DSimple, R2Plus1dStem, VideoResNet

from zoo.structures import Inputs, Structure, pictures

SHORT = [1, 1, 1, 1]


def narrowed(make: Callable[[], Any], features: int) -> Any:
    """With a classifier of a hundredth of the weights; the layers before it are its own."""
    model = make()
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    return model


def vgg(norm: bool) -> Any:
    layers = tv.vgg.make_layers([16, "M", 32, "M", 64, 64, "M", 128, "M"], batch_norm=norm)
    return narrowed(lambda: tv.VGG(layers, init_weights=False), 128)


class Plain(nn.Module):
    """A detector or segmenter whose answer is a mapping, or a list of them, as a tuple of tensors."""

    def __init__(self, model: nn.Module, listed: bool = False) -> None:
        super().__init__()
        self.model, self.listed = model, listed

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.listed:
            return tuple(self.model([x[0]])[0].values())
        return tuple(self.model(x).values())


def detector(make: Callable[..., Any], **options: Any) -> Any:
    return Plain(make(weights=None, weights_backbone=None, num_classes=5, **options), listed=True)


def segmenter(make: Callable[..., Any]) -> Any:
    return Plain(make(weights=None, weights_backbone=None, num_classes=5))


def films(batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 3, 6, 32, 32)}


def one(name: str, make: Callable[[], Any], inputs: Inputs | None = None, **more: Any) -> Structure:
    return Structure(name, "torchvision", make, inputs or pictures(64), **more)


def video(conv: Any, stem: Any) -> Callable[[], Any]:
    return lambda: VideoResNet(VideoBlock, [conv] * 4, SHORT, stem, num_classes=10)


SMALL = {"num_classes": 10}
STRUCTURES = [
    one("alexnet", partial(narrowed, partial(tv.AlexNet), 256)),
    one("vgg", partial(vgg, False)),
    one("vgg_bn", partial(vgg, True)),
    one("resnet", partial(tv.ResNet, BasicBlock, SHORT, 10)),
    one("resnext", partial(tv.ResNet, Bottleneck, [1, 1, 1, 1], 10, groups=8, width_per_group=4)),
    one("squeezenet", partial(tv.squeezenet1_1, **SMALL)),
    one("densenet", partial(DenseNet, 12, (2, 3, 2), 24, **SMALL)),
    one("googlenet", partial(tv.googlenet, aux_logits=False, init_weights=False, **SMALL)),
    one("shufflenet_v2", partial(tv.shufflenet_v2_x0_5, **SMALL)),
    one("mobilenet_v2", partial(tv.mobilenet_v2, width_mult=0.5, **SMALL)),
    one("mobilenet_v3", partial(tv.mobilenet_v3_small, **SMALL)),
    one("mnasnet", partial(tv.mnasnet0_5, **SMALL)),
    one("efficientnet", partial(tv.efficientnet_b0, **SMALL)),
    one("regnet", partial(tv.regnet_y_400mf, **SMALL)),
    one(
        "convnext",
        partial(tv.ConvNeXt, [CNBlockConfig(24, 48, 1), CNBlockConfig(48, 96, 1), CNBlockConfig(96, None, 1)], **SMALL),
    ),
    one("vit", partial(tv.VisionTransformer, 64, 8, 2, 4, 64, 128, **SMALL)),
    one("swin", partial(tv.SwinTransformer, [4, 4], 32, [1, 1], [2, 4], [4, 4], **SMALL)),
    one(
        "swin_v2",
        partial(
            tv.SwinTransformer,
            [4, 4],
            32,
            [1, 2],
            [2, 4],
            [4, 4],
            block=tv.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=tv.swin_transformer.PatchMergingV2,
            **SMALL,
        ),
    ),
    one("maxvit", partial(tv.MaxVit, (64, 64), 16, 2, [16, 32], [1, 1], 8, 0.0, **SMALL)),
    one("lraspp", partial(segmenter, tv.segmentation.lraspp_mobilenet_v3_large)),
    one("deeplabv3", partial(segmenter, tv.segmentation.deeplabv3_mobilenet_v3_large)),
    # Boxes are counted by their values: torch.export does not trace it, and a batch has another answer.
    one(
        "ssdlite",
        partial(detector, tv.detection.ssdlite320_mobilenet_v3_large),
        exporters=("torchscript",),
        fixed=True,
        ranked=True,
    ),
    one(
        "faster_rcnn",
        partial(detector, tv.detection.fasterrcnn_mobilenet_v3_large_320_fpn, min_size=96, max_size=96),
        exporters=("torchscript",),
        fixed=True,
        ranked=True,
    ),
    one("video_resnet", video(Conv3DSimple, BasicStem), films),
    one("r2plus1d", video(Conv2Plus1D, R2Plus1dStem), films),
]
