"""Architectures of timm, the smallest of each kind."""

from functools import partial
from typing import Any

import timm
from timm.models import mlp_mixer, sequencer

from zoo.structures import Structure, pictures

SMALL: dict[str, Any] = {"num_classes": 10}
# The variants that are small as they are, and options that make others so.
CONVOLUTIONAL = (
    "resnet10t",
    "mobilenetv3_small_050",
    "ghostnet_050",
    "mixnet_s",
    "convnext_atto",
    "convnextv2_atto",
    "repvgg_a0",
    "tinynet_e",
    "lcnet_050",
    "mobilenetv4_conv_small",
    "starnet_s1",
    "fasternet_t0",
    "hardcorenas_a",
    "rexnet_100",
    "inception_next_atto",
    "mobileone_s0",
    "ese_vovnet19b_dw",
    "gernet_s",
    "poolformer_s12",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "repvit_m0_9",
    "efficientvit_b0",
    "mambaout_femto",
    "pvt_v2_b0",
)
SIZED = {"img_size": 64}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {**SIZED, "depth": 2},
    "beit_base_patch16_224": {**SIZED, "depth": 2, "embed_dim": 96, "num_heads": 4},
    "deit_tiny_distilled_patch16_224": {**SIZED, "depth": 2},
    "levit_128s": SIZED,
    "xcit_nano_12_p16_224": {"depth": 3},
    "cait_xxs24_224": {**SIZED, "depth": 2},
    "convit_tiny": {**SIZED, "depth": 3},
    "pit_ti_224": SIZED,
    "coat_lite_tiny": SIZED,
    "tnt_s_patch16_224": {**SIZED, "depth": 2},
    "swinv2_cr_tiny_ns_224": {**SIZED, "depths": (1, 1), "embed_dim": 32, "num_heads": (2, 4), "window_size": 4},
    "davit_tiny": {"depths": (1, 1), "embed_dims": (32, 64), "num_heads": (2, 4)},
}
MIXER: dict[str, Any] = {**SMALL, **SIZED, "patch_size": 16, "num_blocks": 2, "embed_dim": 64}
# Those whose variants fix their sizes.
CLASSES: dict[str, Any] = {
    "mixer": partial(mlp_mixer.MlpMixer, **MIXER),
    "resmlp": partial(
        mlp_mixer.MlpMixer, mlp_ratio=4, block_layer=mlp_mixer.ResBlock, norm_layer=mlp_mixer.Affine, **MIXER
    ),
    "gmlp": partial(
        mlp_mixer.MlpMixer, mlp_ratio=6, block_layer=mlp_mixer.SpatialGatingBlock, mlp_layer=mlp_mixer.GatedMlp, **MIXER
    ),
    "sequencer2d": partial(
        sequencer.Sequencer2d,
        layers=(1, 1, 1, 1),
        embed_dims=(48, 96, 96, 96),
        hidden_sizes=(12, 24, 24, 24),
        **SMALL,
        **SIZED,
    ),
}
STRUCTURES = [
    Structure(name.removesuffix("_224"), "timm", partial(timm.create_model, name, **SMALL, **options), pictures(64))
    for name, options in {**{each: {} for each in CONVOLUTIONAL}, **TRANSFORMERS}.items()
]
STRUCTURES += [Structure(name, "timm", make, pictures(64)) for name, make in CLASSES.items()]
