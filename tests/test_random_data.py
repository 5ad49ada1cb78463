"""Random inputs run the model they are made for, and depend on nothing but the seed and the sample."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from data_cases import INT, gathered, spec

from onnx_compress.model.document import Model
from onnx_compress.runtime.data import random_data
from onnx_compress.runtime.session import Session, input_specs

BERT = """
<ir_version: 8, opset_import: ["" : 17]>
bert (int64[batch,seq] input_ids, int64[batch,seq] attention_mask, int64[batch,seq] token_type_ids,
      int64[batch,seq] position_ids) => (float[batch,seq,4] y)
<float[11,4] words, float[2,4] kinds, float[6,4] places>
{
  a = Gather(words, input_ids)
  b = Gather(kinds, token_type_ids)
  c = Gather(places, position_ids)
  d = Add(a, b)
  e = Add(d, c)
  mask = Cast<to = 1>(attention_mask)
  wide = Unsqueeze(mask, two)
  y = Mul(e, wide)
}
"""


def bert() -> Model:
    proto = onnx.parser.parse_model(BERT.replace("places>", "places, int64[1] two = {2}>"))
    for name, rows in (("words", 11), ("kinds", 2), ("places", 6)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((rows, 4), np.float32), name))
    del proto.graph.input[4:]
    return Model.from_proto(proto)


def test_random_inputs_run_a_bert() -> None:
    """Ids stay inside their tables, which a Gather out of range would refuse."""
    model = bert()
    data = random_data(input_specs(model), 5, seed=1, model=model)
    feeds = next(data.batches(5))
    assert Session(model).run(feeds)["y"].shape == (5, 32, 4)
    assert feeds["input_ids"].max() < 11
    assert feeds["attention_mask"].all()
    assert not feeds["token_type_ids"].any()
    assert feeds["position_ids"].max() == 5
    assert data.random
    assert data.samples == 5


def test_random_inputs_depend_on_the_seed_and_the_sample_only() -> None:
    specs = [spec("image", ("N", 3, 16, "W"))]
    one, same, other = (random_data(specs, 6, seed, {"image": (1, 3, 16, 20)}) for seed in (0, 0, 1))
    assert np.array_equal(gathered(one, 4, "image"), gathered(same, 2, "image"))
    assert not np.array_equal(gathered(one, 4, "image"), gathered(other, 4, "image"))
    assert gathered(one, 4, "image").shape == (6, 3, 16, 20)
    assert np.array_equal(gathered(one.take(2), 4, "image"), gathered(one, 6, "image")[:2])


def test_random_inputs_of_a_recurrent_voice_model() -> None:
    specs = [spec("input", (None, None)), spec("state", (2, None, 128)), spec("sr", (), INT)]
    feeds = next(random_data(specs, 2).batches())
    assert feeds["input"].shape == (1, 512)
    assert feeds["state"].shape == (2, 1, 128)
    assert not feeds["state"].any()
    assert feeds["sr"] == 16000


def test_random_inputs_of_powers_of_two_are_numbers() -> None:
    """float8 e8m0 has no sign: negative values would be NaN, which data may not hold."""
    text = '<ir_version: 12, opset_import: ["": 24]> g (float8e8m0[8, 16] x) => (float[8, 16] y) { y = Cast<to = 1>(x) }'
    model = Model.from_proto(onnx.parser.parse_model(text))
    (feeds,) = random_data(input_specs(model), 8).batches(8)
    values = feeds["x"].astype(np.float32)
    assert np.isfinite(values).all()
    assert (values > 0).all()
    assert len(np.unique(values)) > 2


def test_random_inputs_fill_the_batch_that_a_model_demands() -> None:
    """More than are asked for, where a batch is more: a run without data would have nothing to verify with."""
    (feeds,) = random_data([spec("x", (48, 3))], 32).batches(32)
    assert feeds["x"].shape == (48, 3)
