"""Print the table of README.md, measured with onnxruntime: `python models/measure.py`."""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from data import EVALUATION, SOURCE, load, scale
from onnx import numpy_helper, shape_inference

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = Path(__file__).parent


def parameters(model: onnx.ModelProto) -> int:
    """Floating-point numbers stored in the model: weights, biases, statistics of BatchNormalization."""
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return sum(array.size for array in arrays if array.dtype == np.float32)


def multiply_adds(model: onnx.ModelProto) -> int:
    """Multiply-adds of Conv, Gemm, MatMul and LSTM at batch 1; biases and the rest count nothing."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    batch.dim_value = 1
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        first, second = (shapes.get(name, []) for name in (*node.input, "", "")[:2])
        result = shapes.get(node.output[0], [])
        if node.op_type == "Conv":
            total += prod(result) * prod(second[1:])
        elif node.op_type == "Gemm":
            total += result[0] * prod(second)
        elif node.op_type == "MatMul":
            total += prod(result) * first[-1]
        elif node.op_type == "LSTM":
            steps = first[0]
            total += steps * (prod(second) + prod(shapes[node.input[2]]))
    return total


def guesses(path: Path, pixels: NDArray[np.float32]) -> NDArray[np.int64]:
    """Class onnxruntime finds likeliest for each of `pixels`."""
    session = onnxruntime.InferenceSession(path)
    parts = np.split(pixels, range(100, len(pixels), 100))
    return np.concatenate([session.run(["logits"], {"input": part})[0].argmax(1) for part in parts])


def main() -> None:
    """Print a row for each model of this folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SOURCE)
    pixels, label = load(parser.parse_args().data, "t10k")
    print("| model | parameters | MACs | bytes | top-1, 10,000 | top-1, 2,000 |")
    print("|---|---:|---:|---:|---:|---:|")
    for path in sorted(HERE.glob("*.onnx")):
        model = onnx.load(path)
        right = guesses(path, scale(pixels)) == label
        print(
            f"| `{path.stem}` | {parameters(model):,} | {multiply_adds(model):,} "
            f"| {path.stat().st_size:,} "
            f"| {right.mean():.2%} | {right[:EVALUATION].mean():.2%} |"
        )


if __name__ == "__main__":
    main()
