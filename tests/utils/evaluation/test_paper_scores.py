import pytest

from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.paper_scores import PAPER, Scores, paper_row

TABLE_1_ROWS = [
    "ESRGAN",
    *(f"{net}+{rival}" for net in ("RRDB", "SwinIR") for rival in ("LDL", "P", "P+SeD", "U", "U+SeD")),
]
STARTING_POINTS = ["bicubic", "RRDB-PSNR", "SwinIR-M"]


@pytest.mark.parametrize("row", TABLE_1_ROWS)
def test_every_row_of_table_1_has_all_scores_on_the_five_benchmarks(row):
    assert sorted(PAPER[row]) == ["DIV2K", "Manga109", "Set14", "Set5", "Urban100"]
    for scores in PAPER[row].values():
        assert 0.04 < scores.lpips < 0.14
        assert 24 < scores.psnr < 32
        assert 0.69 < scores.ssim < 0.9


@pytest.mark.parametrize(
    ("row", "benchmark", "published"),
    [
        ("RRDB+P+SeD", "Set5", Scores(lpips=0.064, psnr=31.22, ssim=0.867)),
        ("RRDB+U+SeD", "Manga109", Scores(lpips=0.047, psnr=30.46, ssim=0.897)),
        ("SwinIR+P", "Set14", Scores(lpips=0.127, psnr=27.66, ssim=0.747)),
        ("SwinIR+P+SeD", "Urban100", Scores(lpips=0.097, psnr=26.45, ssim=0.794)),
        ("SwinIR+U", "DIV2K", Scores(lpips=0.095, psnr=29.56, ssim=0.810)),
        ("bicubic", "Set5", Scores(lpips=None, psnr=28.42, ssim=0.8104)),
        ("SwinIR-M", "Manga109", Scores(lpips=None, psnr=32.03, ssim=0.9260)),
    ],
)
def test_scores_are_the_published_ones(row, benchmark, published):
    assert paper_row(row)[benchmark] == published


@pytest.mark.parametrize("benchmark", ["Set5", "Set14", "DIV2K", "Urban100", "Manga109"])
@pytest.mark.parametrize("generator", ["RRDB", "SwinIR"])
def test_semantics_improve_the_patch_discriminator_everywhere_as_the_paper_claims(generator, benchmark):
    assert paper_row(f"{generator}+P+SeD")[benchmark].lpips < paper_row(f"{generator}+P")[benchmark].lpips


@pytest.mark.parametrize("benchmark", ["Set5", "Set14", "Urban100", "Manga109"])
def test_gan_training_trades_psnr_of_its_starting_point(benchmark):
    bicubic, rrdb, swinir = (paper_row(row)[benchmark].psnr for row in STARTING_POINTS)
    assert bicubic < rrdb < swinir
    assert all(paper_row(row)[benchmark].psnr < rrdb for row in TABLE_1_ROWS if row.startswith(("RRDB", "ESRGAN")))
    assert all(paper_row(row)[benchmark].psnr < swinir for row in TABLE_1_ROWS if row.startswith("SwinIR"))


def test_unpublished_scores_are_none_or_absent():
    assert "DIV2K" not in paper_row("bicubic")
    assert "BSD100" not in paper_row("RRDB+P+SeD")
    assert paper_row(None) == {}


def test_unknown_row_has_a_suggestion():
    with pytest.raises(UserError, match=r"did you mean RRDB\+P\+SeD\?"):
        paper_row("RRDB+PSeD")
