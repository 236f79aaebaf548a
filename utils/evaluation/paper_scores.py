"""Published x4 scores, with which reproductions are compared."""

import difflib
from dataclasses import dataclass

from sed_sr.options.errors import UserError

PAPER_SCALE = 4


@dataclass(frozen=True)
class Scores:
    """Means over the images of a benchmark, by the protocol of `metrics`."""

    lpips: float | None  # AlexNet v0.1, lower is better; None: not published
    psnr: float  # dB, on Y
    ssim: float  # on Y


# LPIPS/PSNR/SSIM. From "ESRGAN" on: Table 1 of the SeD paper (CVPR 2024, arXiv 2402.19387), where P and U are the plain
# patch and U-Net discriminators. Before it: bicubic upsampling and the PSNR-oriented generators with which GAN training
# starts, from the papers on RRDB (ESRGAN) and SwinIR.
_TABLE = """
              Set5             Set14            DIV2K            Urban100         Manga109
bicubic       -/28.42/.8104    -/26.00/.7027    -                -/23.14/.6577    -/24.89/.7866
RRDB-PSNR     -/32.73/.9011    -/28.99/.7917    -                -/27.03/.8153    -/31.66/.9196
SwinIR-M      -/32.92/.9044    -/29.09/.7950    -                -/27.45/.8254    -/32.03/.9260
ESRGAN        .076/30.44/.852  .133/26.28/.699  .115/28.20/.777  .123/24.37/.734  .065/28.41/.859
RRDB+LDL      .069/31.03/.861  .121/26.94/.721  .101/28.95/.795  .110/25.50/.767  .055/29.41/.875
RRDB+P        .070/30.67/.860  .130/26.92/.724  .111/28.71/.792  .120/24.86/.752  .058/28.60/.872
RRDB+P+SeD    .064/31.22/.867  .117/27.37/.736  .094/29.27/.802  .106/25.93/.779  .048/29.99/.888
RRDB+U        .072/31.13/.869  .127/27.52/.739  .110/29.28/.802  .125/25.61/.768  .056/29.49/.882
RRDB+U+SeD    .069/31.73/.880  .123/27.94/.757  .102/29.85/.818  .112/26.20/.788  .047/30.46/.897
SwinIR+LDL    .065/31.03/.861  .118/27.22/.732  .094/29.12/.801  .102/26.23/.792  .047/30.14/.888
SwinIR+P      .070/31.49/.876  .127/27.66/.747  .103/29.66/.815  .107/26.22/.790  .048/30.18/.895
SwinIR+P+SeD  .061/31.44/.870  .115/27.53/.742  .090/29.53/.810  .097/26.45/.794  .044/30.48/.896
SwinIR+U      .064/31.38/.869  .120/27.64/.744  .095/29.56/.810  .103/26.09/.786  .049/29.99/.889
SwinIR+U+SeD  .067/31.64/.874  .117/27.84/.750  .096/29.79/.816  .102/26.46/.796  .045/30.58/.898
"""


def _parse(cell: str) -> Scores:
    lpips, psnr, ssim = cell.split("/")
    return Scores(lpips=None if lpips == "-" else float(lpips), psnr=float(psnr), ssim=float(ssim))


def _parse_table(table: str) -> dict[str, dict[str, Scores]]:
    header, *rows = (line.split() for line in table.strip().splitlines())
    return {
        row: {benchmark: _parse(cell) for benchmark, cell in zip(header, cells, strict=True) if cell != "-"}
        for row, *cells in rows
    }


PAPER = _parse_table(_TABLE)


def paper_row(name: str | None) -> dict[str, Scores]:
    """The published scores of a row (`RRDB+P+SeD`) by benchmark, none for None. Raises UserError for unknown rows."""
    if name is None:
        return {}
    if name not in PAPER:
        near = difflib.get_close_matches(name, PAPER, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"there is no row {name!r} of published scores{hint}; the rows are {', '.join(PAPER)}")
    return PAPER[name]
