"""Prepare brings a model to the form that passes rely on, its outputs unchanged to rounding, never slower.

Passes then find: no calls of the model's own functions; every weight an initializer (gs.Constant), not a Constant node;
no node that computes from constants alone, unless that is how a weight is stored; no Identity, Dropout or dead node;
BatchNormalization only where it follows no layer; a name for every node; and vectors (biases, norms) of one layer each.
"""

from __future__ import annotations

from onnx_compress.model.prepare.edits import Edit, Left
from onnx_compress.model.prepare.freeze_inputs import freeze_inputs
from onnx_compress.model.prepare.steps import Prepared, prepare

__all__ = ["Edit", "Left", "Prepared", "freeze_inputs", "prepare"]
