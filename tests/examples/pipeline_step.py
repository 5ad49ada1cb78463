"""As a step of a pipeline that passes files and settings on, as Olive and its like do: a class with a configuration.

python pipeline_step.py models/fashion_mlp.onnx small.onnx models/fashion_calib.npz
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_compress import compress
from onnx_compress.errors import ThresholdError


@dataclass(frozen=True)
class CompressStep:
    """One step: a model's path in, the path of the new model out, or of the old one where it would lose too much."""

    passes: str = "prune,svd,int8"
    settings: dict[str, Any] = field(default_factory=dict)  # keywords of compress

    def run(self, model: Path, output: Path, data: Path) -> Path:
        """The path that the next step goes on with; the report stands beside the new model."""
        try:
            result = compress(model, self.passes, data=data, isolate=True, **self.settings)
        except ThresholdError as error:
            print(f"kept {model}: {error}")
            return model
        result.save(output)
        before, after = (result.report[side]["bytes"] for side in ("before", "after"))
        print(
            f"{output}: {before / after:.1f}x smaller, {result.report['latency']['speedup']['median']:.1f}x faster"
        )
        return output


def main(model: str, output: str, data: str) -> None:
    """Compresses, unless agreement falls below 15 dB."""
    step = CompressStep("prune,int8", {"min_sqnr": 15.0, "samples": 128})
    step.run(Path(model), Path(output), Path(data))


if __name__ == "__main__":
    main(*sys.argv[1:])
