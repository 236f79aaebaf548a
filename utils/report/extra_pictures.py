"""Further pictures of each image in the report: what a discriminator sees in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sed_sr.utils.runtime.memory import unless_out_of_memory
from sed_sr.utils.visualization.discriminator_file import TrainedDiscriminator
from sed_sr.utils.visualization.discriminator_views import MIN_PX, attention_blocks
from sed_sr.utils.visualization.pictures import discriminator_pictures

NOTES = {
    "semantics": "Semantics: the first three principal components of the semantic features, as colours.",
    "attention": "Attention: the attention map of the finest fusion block for the marked point; brightest is highest.",
    "real/fake": "Real/fake: yellow is classified as real, blue as fake. Dark margins were not shown to it.",
}


@dataclass(frozen=True)
class ExtraPictures:
    """Pictures of each image with ground truth, beside LR, SR and HR, of the size of HR."""

    titles: tuple[str, ...]
    note: str  # explains them to users
    # (HR, SR of each candidate) -> a picture for each title. HR is (H, W, 3) uint8, SR at least as large, None if
    # missing. A picture that cannot be drawn is None.
    draw: Callable[[np.ndarray, list[np.ndarray | None]], list[np.ndarray | None]]


NO_EXTRA_PICTURES = ExtraPictures((), "", lambda hr, sr: [])


def discriminator_extra_pictures(trained: TrainedDiscriminator, labels: Sequence[str]) -> ExtraPictures:
    """The views of a trained discriminator, for a report that compares candidates of these labels."""
    kinds = ["semantics"] if trained.extractor is not None else []
    kinds += ["attention"] if attention_blocks(trained.discriminator) else []
    titles = (*kinds, "real/fake: HR", *(f"real/fake: {label}" for label in labels))

    def draw(hr: np.ndarray, sr: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
        height, width = hr.shape[:2]
        given = {label: each[:height, :width] for label, each in zip(labels, sr, strict=True) if each is not None}
        drawn = None  # remains so for an image that is too small, or too large for the memory
        if min(height, width) >= MIN_PX:
            drawn = unless_out_of_memory(
                partial(discriminator_pictures, trained.discriminator, trained.extractor, hr=hr, sr=given)
            )
        if drawn is None:
            return [None] * len(titles)
        optional = [picture for picture in (drawn.semantics, drawn.attention) if picture is not None]
        return [*optional, drawn.real_hr, *(drawn.real_sr.get(label) for label in labels)]

    notes = (f"Further pictures show what a discriminator sees: {trained.about}.", *(NOTES[kind] for kind in kinds))
    return ExtraPictures(titles, " ".join((*notes, NOTES["real/fake"])), draw)
