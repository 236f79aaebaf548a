"""What a repository of the Hugging Face hub holds: generator weights as safetensors, and a model card about them.

Neither contains paths of this machine.
"""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from scipy.special import stdtrit

from sed_sr.data.files import write_text
from sed_sr.options.errors import UserError
from sed_sr.options.yaml_text import to_yaml
from sed_sr.utils.weights.catalogue import HUB_FILE
from sed_sr.utils.weights.export import FORMATS, export
from sed_sr.utils.weights.generator_file import GeneratorFile, load_generator
from sed_sr.utils.weights.hub import SCHEME

CARD = "README.md"
RESULTS = "results.json"  # of test.py
CONFIDENCE = 0.95
NO_PATHS = ("model",)  # option whose values have slashes: clip/RN50
ON_THE_HUB = re.compile(rf"([^/]*=)?{SCHEME}")
SED = "[SeD](https://arxiv.org/abs/2402.19387)"


class MetricInfo(BaseModel):
    """A metric in results.json."""

    title: str
    lower_is_better: bool


class BenchmarkResult(BaseModel):
    """The scores on one benchmark in results.json; the others of its entries are not used."""

    mean: dict[str, float | None]  # None: infinite
    standard_error: dict[str, float | None]
    images_scored: dict[str, int]
    images_total: int


class WeightsResult(BaseModel):
    """The scores of one of the weights in results.json."""

    source: str
    about: str
    benchmarks: dict[str, BenchmarkResult]


class TestResults(BaseModel):
    """The part of results.json that is used here."""

    __test__ = False  # pytest would collect a class of this name

    protocol: str
    settings: dict[str, Any]
    metrics: dict[str, MetricInfo]
    weights: list[WeightsResult]


def write_repository(
    folder: Path, file: GeneratorFile, *, repository: str, license_id: str | None, scores: Path | None
) -> None:
    """Write the weights and the model card of a repository.

    Args:
        file: its weights, its network and what it says of its run.
        repository: user/name, for the commands in the card.
        license_id: as the hub spells it, such as `apache-2.0`; None: the card states none.
        scores: output folder of test.py with scores of these weights; None: those of the last validation, if the file
            has them.

    Raises:
        UserError: the network cannot be exported, a file cannot be written, or `scores` has no scores of these weights.
    """
    tables = _validation_scores(file) if scores is None else _test_scores(scores, file)
    if file.record:
        file = replace(file, record={**file.record, "options": without_paths(file.record["options"])})
    export(file, FORMATS["safetensors"], folder / HUB_FILE)
    write_text(folder / CARD, _card(file, tables, repository=repository, license_id=license_id))


def without_paths(options: dict[str, Any]) -> dict[str, Any]:
    """Options without the section `paths`; of all other paths, only the last name is kept."""
    return _last_names({key: value for key, value in options.items() if key != "paths"})


def _last_names(value: Any) -> Any:
    if isinstance(value, dict):
        public = {}
        for key, part in value.items():
            name, number = _last_names(key), 1
            while name in public:  # folders of the same name: all are kept, with their weights
                number += 1
                name = f"{_last_names(key)}_{number}"
            public[name] = part if key in NO_PATHS else _last_names(part)
        return public
    if isinstance(value, list | tuple):
        return [_last_names(part) for part in value]
    if isinstance(value, str) and not ON_THE_HUB.match(value):
        return value.rstrip("/").rpartition("/")[2]
    return value


def _card(file: GeneratorFile, scores: str, *, repository: str, license_id: str | None) -> str:
    options = file.record.get("options", {})
    generator = load_generator(file)
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    trained_with_sed = _fusion(options) not in (None, "none")
    metadata = {
        **({"license": license_id} if license_id else {}),
        "library_name": "sed-sr",
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution" if generator.scale > 1 else "image-restoration", *["sed"] * trained_with_sed],
    }
    network = file.weights.network or json.dumps(options.get("generator", {}))  # a custom generator
    averaged = "\n- weights: the running average over training" if file.weights.entry == "params_ema" else ""
    return f"""---
{to_yaml(metadata)}---

# {file.name}

A network for {f"x{generator.scale} image super-resolution" if generator.scale > 1 else "image restoration"}.

- network: {network}
- parameters: {parameters:,}{averaged}

## Use

In a checkout of the training framework for {SED}:

```bash
python test.py --weights {SCHEME}{repository}/{HUB_FILE} --input photo.png --output_path results/photo
```

The same address can be given wherever weights are, such as `--set train.start_from={SCHEME}{repository}/{HUB_FILE}`.
{scores}{_training(file, options)}"""


def _training(file: GeneratorFile, options: dict[str, Any]) -> str:
    if not options:
        return ""
    steps = "" if file.step is None else f" for {file.step:,} steps"
    return f"""
## Training

`{file.name}` was trained{steps}, {_objective(options)}.

<details><summary>All options of the run</summary>

```yaml
{to_yaml(options)}```

</details>
"""


def _fusion(options: dict[str, Any]) -> str | None:
    """How the semantics enter the discriminator; None without a discriminator."""
    discriminator = options.get("discriminator")
    return discriminator.get("fusion") if isinstance(discriminator, dict) else None


def _objective(options: dict[str, Any]) -> str:
    fusion = _fusion(options)
    if fusion is None:
        return "PSNR-oriented, without a discriminator"
    kind = {"unet": "U-Net", "patch": "PatchGAN"}.get(options["discriminator"].get("type"), "custom")
    if fusion == "none":
        return f"against a plain discriminator ({kind})"
    model = (options.get("semantic_extractor") or {}).get("model", "an unknown model")
    return f"against the semantic-aware discriminator of SeD ({kind}, {fusion}, semantics of {model})"


def _validation_scores(file: GeneratorFile) -> str:
    if not file.scores:
        return ""
    metrics = list(dict.fromkeys(metric for means in file.scores.values() for metric in means))
    rows = {
        benchmark: [f"{means[metric]:.4f}" if metric in means else "" for metric in metrics]
        for benchmark, means in file.scores.items()
    }
    at = "" if file.scored_step is None else f", at step {file.scored_step:,}"
    return _scores_section(f"Means over images in the last validation during training{at}.", metrics, rows)


def _test_scores(folder: Path, file: GeneratorFile) -> str:
    """The scores of the weights of a file in the output folder of test.py.

    Raises UserError if there are none.
    """
    path = folder / RESULTS
    try:
        results = TestResults.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}; give --scores the output of test.py") from None
    except ValidationError:
        raise UserError(f"{path} is not a complete results file of test.py") from None
    found = next((weights for weights in results.weights if _is_of(weights, file)), None)
    if found is None or not any(benchmark.mean for benchmark in found.benchmarks.values()):
        sources = ", ".join(weights.source for weights in results.weights)
        raise UserError(f"{path} has no scores of {file.path}; it is about {sources}")
    titles = [f"{metric.title} {'↓' if metric.lower_is_better else '↑'}" for metric in results.metrics.values()]
    rows = {
        name: [_with_interval(benchmark, metric) for metric in results.metrics]
        for name, benchmark in found.benchmarks.items()
    }
    ensemble = ", with self-ensemble" if results.settings.get("self_ensemble") else ""
    about = (
        f"Means over images with their {100 * CONFIDENCE:.0f} % confidence intervals (Student's t). "
        f"{results.protocol}. Upscaled in {results.settings.get('precision')}{ensemble}."
    )
    return _scores_section(about, titles, rows)


def _is_of(weights: WeightsResult, file: GeneratorFile) -> bool:
    """Whether results are of the weights of a file, or of a copy that states the same run and step."""
    if weights.about != file.about:  # the file may have been replaced since then: the newest weights of a run are
        return False
    try:
        return file.step is not None or file.path.samefile(weights.source)
    except OSError:
        return False


def _with_interval(benchmark: BenchmarkResult, metric: str) -> str:
    if metric not in benchmark.mean:
        return ""
    mean, images = benchmark.mean[metric], benchmark.images_scored[metric]
    text = f"{math.inf if mean is None else mean:.4f}"
    error = benchmark.standard_error.get(metric)
    if error is not None:
        text += f" ± {stdtrit(images - 1, (1 + CONFIDENCE) / 2) * error:.4f}"
    return text if images == benchmark.images_total else f"{text} ({images} of {benchmark.images_total} images)"


def _scores_section(about: str, metrics: list[str], rows: dict[str, list[str]]) -> str:
    lines = [("benchmark", *metrics), ("---", *("---:" for _ in metrics))]
    lines += [(name.replace("|", "\\|"), *row) for name, row in rows.items()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"\n## Scores\n\n{table}\n\n{about}\n"
