"""`masksim.original.residual_network`: the torch module against the ONNX graph."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from masksim.errors import UsageError  # noqa: E402
from masksim.original.residual_network import build_residual, weights_of  # noqa: E402
from masksim.residual import (  # noqa: E402
    OnnxResidual,
    ResidualConfig,
    residual_onnx,
    weight_shapes,
)
from residual_examples import CONFIGS, some_weights  # noqa: E402

# Single precision against single precision, relative to the largest value of the residual.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 41, 53)])
def test_onnx_equals_torch(name: str, shape: tuple[int, ...]) -> None:
    config = CONFIGS[name]
    pixels = np.random.default_rng(12).random(shape, dtype=np.float32)
    weights = some_weights(config)
    module = build_residual(config, weights).eval()
    with torch.no_grad():
        expected = module(torch.from_numpy(pixels)).numpy()
    found = OnnxResidual(residual_onnx(config, weights), threads=1)(pixels)
    side = [n - 2 * config.margin for n in shape[2:]]
    assert found.shape == (shape[0], 3, *side)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_torch_names_are_those_of_weight_shapes() -> None:
    for config in CONFIGS.values():
        module = build_residual(config)
        state = {
            name: tuple(value.shape)
            for name, value in module.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        if config.kind == "cross_diff":  # its kernel is fixed, no weight
            assert state == {"0.weight": (3, 1, 2, 2)}
            assert not any(p.requires_grad for p in module.parameters())
        else:
            assert state == weight_shapes(config)


def test_weights_go_to_torch_and_back() -> None:
    for config in CONFIGS.values():
        weights = some_weights(config)
        module = build_residual(config, weights)
        back = weights_of(config, module)
        assert list(back) == list(weight_shapes(config))
        for name, values in back.items():
            np.testing.assert_array_equal(values, weights[name])
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        for name, values in back.items():  # copies, not views of what is trained on
            np.testing.assert_array_equal(values, weights[name])


def test_the_bank_has_nothing_to_train() -> None:
    with pytest.raises(UsageError, match="no weights"):
        build_residual(ResidualConfig("bank"))
