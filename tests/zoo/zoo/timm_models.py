"""Architectures of timm, the smallest of each kind."""

from functools import partial
from typing import Any

import timm

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
    "mixer_s32_224": {**SIZED, "num_blocks": 2, "embed_dim": 128},
    "resmlp_12_224": {**SIZED, "num_blocks": 2, "embed_dim": 128},
    "gmlp_ti16_224": {**SIZED, "num_blocks": 2},
    "levit_128s": SIZED,
    "xcit_nano_12_p16_224": {"depth": 3},
    "cait_xxs24_224": {**SIZED, "depth": 2},
    "convit_tiny": {**SIZED, "depth": 3},
    "pit_ti_224": SIZED,
    "coat_lite_tiny": SIZED,
    "tnt_s_patch16_224": {**SIZED, "depth": 2},
    "swinv2_cr_tiny_ns_224": {**SIZED, "depths": (1, 1), "embed_dim": 32, "num_heads": (2, 4), "window_size": 4},
    "davit_tiny": {"depths": (1, 1), "embed_dims": (32, 64), "num_heads": (2, 4)},
    "sequencer2d_s": {
        "layers": (1, 1),
        "embed_dims": (48, 96),
        "hidden_sizes": (12, 24),
        "patch_sizes": (7, 2),
        "mlp_ratios": (3.0, 3.0),
        "num_rnn_layers": (1, 1),
        "down_sample": (True, False),
    },
}
STRUCTURES = [
    Structure(name.removesuffix("_224"), "timm", partial(timm.create_model, name, **SMALL, **options), pictures(64))
    for name, options in [*((name, {}) for name in CONVOLUTIONAL), *TRANSFORMERS.items()]
]
