"""From a torch module to a small ONNX file: `torch.onnx.export` gives an ONNXProgram, which `compress` takes as it is.

pip install torch onnxscript onnx-compress && python torch_export.py
"""

from __future__ import annotations

import torch

from onnx_compress import compress


def main() -> None:
    """Exports a network, prunes and quantizes it, and prints how far the outputs moved."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 10),
    ).eval()
    batches = [torch.randn(16, 3, 32, 32) for _ in range(8)]  # yours: real inputs
    program = torch.onnx.export(network, (batches[0],), dynamo=True, verbose=False)
    feeds = ({program.model.graph.inputs[0].name: batch.numpy()} for batch in batches)
    result = compress(program, "prune,int8", data=feeds)
    print(result.report["agreement"], result.report["latency"]["speedup"])
    result.save("small.onnx")


if __name__ == "__main__":
    main()
