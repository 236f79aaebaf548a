"""The published weight files that recipes, metrics and semantic extractors use: a table, and nothing else."""

from dataclasses import dataclass

HUB_FILE = "model.safetensors"  # the name of the weights in each of timm's repositories on huggingface.co
REAL_ESRGAN = "https://github.com/xinntao/Real-ESRGAN/releases/download"
OPENAI = "https://openaipublic.azureedge.net/clip/models"
TORCHVISION = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class WeightFile:
    """A published weight file."""

    name: str  # on disk
    purpose: str
    url: str
    sha256: str | None = None  # None: not published; recorded at the first download
    size_bytes: int | None = None
    standard: bool = False  # required by the recipes of the paper or by the metrics
    hub_repository: str | None = None  # on huggingface.co


def clip_file(name: str, sha256: str) -> WeightFile:
    """A tower of CLIP."""
    return WeightFile(name, "semantics", f"{OPENAI}/{sha256}/{name}", sha256)


def timm_file(model: str) -> WeightFile:
    """A model of timm, such as resnet50.tv_in1k."""
    url = f"https://huggingface.co/timm/{model}/resolve/main/{HUB_FILE}"
    return WeightFile(f"{model}.safetensors", "semantics", url, hub_repository=f"timm/{model}")


_FILES = (
    WeightFile(
        "RRDB.pth",
        "RRDB recipes",
        "https://github.com/cszn/KAIR/releases/download/v1.0/RRDB.pth",
        standard=True,
    ),
    WeightFile(
        "SwinIR.pth",
        "SwinIR recipes",
        "https://github.com/JingyunLiang/SwinIR/releases/download/v0.0/001_classicalSR_DF2K_s64w8_SwinIR-M_x4.pth",
        "4e78e33f22c1aa8a773db0cf4a7381bae97c2362c717f155439ebc690cbd9215",
        size_bytes=67_869_037,
        standard=True,
    ),
    WeightFile(
        "RN50.pt",
        "semantics (CLIP)",
        f"{OPENAI}/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        size_bytes=255_827_503,
        standard=True,
    ),
    WeightFile(
        "vgg19-dcbb9e9d.pth",
        "perceptual loss",
        f"{TORCHVISION}/vgg19-dcbb9e9d.pth",
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        size_bytes=574_673_361,
        standard=True,
    ),
    WeightFile(
        "vgg16-397923af.pth",
        "LPIPS (VGG)",
        f"{TORCHVISION}/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        size_bytes=553_433_881,
        standard=True,
    ),
    WeightFile(
        "alexnet-owt-7be5be79.pth",
        "LPIPS (AlexNet)",
        f"{TORCHVISION}/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        size_bytes=244_408_911,
        standard=True,
    ),
    WeightFile(
        "DISTS_weights-f5e65c96.pth",
        "DISTS loss",
        "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/DISTS_weights-f5e65c96.pth",
    ),
    WeightFile(
        "RealESRGAN_x4plus.pth",
        "fine-tuning",
        f"{REAL_ESRGAN}/v0.1.0/RealESRGAN_x4plus.pth",
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        size_bytes=67_040_989,
    ),
    WeightFile(
        "RealESRGAN_x4plus_netD.pth",
        "fine-tuning",
        f"{REAL_ESRGAN}/v0.2.2.3/RealESRGAN_x4plus_netD.pth",
    ),
    clip_file("RN101.pt", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
    clip_file("RN50x4.pt", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
    clip_file("RN50x16.pt", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
    clip_file("RN50x64.pt", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
    clip_file("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    clip_file("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    clip_file("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    clip_file("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
    timm_file("resnet50.tv_in1k"),
    timm_file("vit_base_patch16_224.augreg_in21k"),
    timm_file("vit_small_patch14_dinov2.lvd142m"),
    timm_file("convnext_tiny.in12k_ft_in1k"),
    timm_file("vgg19.tv_in1k"),
)
PUBLISHED = {file.name: file for file in _FILES}
