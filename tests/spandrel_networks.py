"""Networks of spandrel with random weights, by its own classes, as small as their architectures allow."""

from spandrel.architectures.ATD import ATD
from spandrel.architectures.Compact import Compact
from spandrel.architectures.CRAFT import CRAFT
from spandrel.architectures.DAT import DAT
from spandrel.architectures.DRCT import DRCT
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.HAT import HAT
from spandrel.architectures.MMRealSR import MMRealSR
from spandrel.architectures.OmniSR import OmniSR
from spandrel.architectures.PLKSR import PLKSR, RealPLKSR
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.RGT import RGT
from spandrel.architectures.SAFMN import SAFMN
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.Swin2SR import Swin2SR

NETWORKS = {
    "ATD": lambda: ATD(
        embed_dim=12, depths=(2,), num_heads=(2,), category_size=64, num_tokens=8, reducted_dim=4, upscale=4,
        upsampler="pixelshuffledirect",
    ),
    "Compact": lambda: Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=4),
    "CRAFT": lambda: CRAFT(embed_dim=12, depths=[1], num_heads=[2], window_size=8, split_size_1=8),
    "DAT": lambda: DAT(embed_dim=16, depth=[2], num_heads=[2], expansion_factor=2.0, upscale=4),
    "DRCT": lambda: DRCT(
        embed_dim=12, depths=(2,), num_heads=(2,), window_size=8, upscale=4, upsampler="pixelshuffle", gc=4
    ),
    "ESRGAN+": lambda: ESRGAN(num_filters=8, num_blocks=1, scale=4, plus=True),
    "HAT": lambda: HAT(
        embed_dim=12, depths=(2,), num_heads=(2,), window_size=8, upscale=4, squeeze_factor=4, num_feat=8
    ),
    "MMRealSR": lambda: MMRealSR(
        num_in_ch=3, num_out_ch=3, scale=4, num_feat=16, num_block=1, num_grow_ch=8, num_degradation=2,
        degradation_degree_actv="sigmoid", num_feats=[8] * 4, num_blocks=[1] * 4, downscales=[2, 2, 2, 1],
    ),
    "OmniSR": lambda: OmniSR(num_feat=16),
    "PLKSR": lambda: PLKSR(dim=16, n_blocks=1, kernel_size=5),
    "RealPLKSR": lambda: RealPLKSR(dim=16, n_blocks=1, kernel_size=5),
    "RCAN": lambda: RCAN(n_resgroups=1, n_resblocks=1, n_feats=16, reduction=4),
    "RGT": lambda: RGT(embed_dim=12, depth=[2], num_heads=[2], mlp_ratio=2.0, upscale=4),
    "SAFMN": lambda: SAFMN(dim=16, n_blocks=1),
    "SPAN": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=4),
    "Swin2SR": lambda: Swin2SR(
        embed_dim=12, depths=[2], num_heads=[2], window_size=8, mlp_ratio=2.0, upscale=4,
        upsampler="pixelshuffledirect",
    ),
}  # fmt: skip
