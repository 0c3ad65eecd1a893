"""Sums in an array's place: guidance, schedulers and forecasts come to what they come to on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from reelquant.runtime.engines.session import Value
from reelquant.runtime.engines.sums import Adder, Sum, as_float32, computed, is_finite, zeros_like
from reelquant.runtime.models.cogvideox.guidance import combine
from reelquant.runtime.models.cogvideox.schedulers import scheduler_from_config
from reelquant.runtime.relative_l2 import relative_l2
from reelquant.runtime.sampling.schedule import weighted

Floats = NDArray[np.float32]
SHAPE = (3, 4, 2, 2)
RNG = np.random.default_rng(0)


class HostAdder(Adder):
    """On the host; counts what it is asked."""

    def __init__(self) -> None:
        self.adds = self.puts = 0

    def put(self, array: Floats) -> Value:
        self.puts += 1
        return array.copy()

    def add(self, terms: Sequence[tuple[float, Value]]) -> tuple[Value, float]:
        self.adds += 1
        total = sum((np.float32(c) * cast(Floats, v) for c, v in terms), np.zeros(SHAPE, np.float32))
        return total, float(np.square(total).sum())

    def copied(self, value: Value) -> Value:
        return cast(Floats, value).copy()

    def fed(self, value: Value) -> Value:
        return cast(Floats, value)[None]

    def host(self, value: Value) -> Floats:
        return cast(Floats, value)


def random() -> Floats:
    return RNG.standard_normal(SHAPE, dtype=np.float32)


def close(found: Any, wanted: NDArray[Any]) -> bool:
    return relative_l2(found.host() if isinstance(found, Sum) else found, wanted) < 1e-6


def test_what_arrays_can_that_is_asked_of_them() -> None:
    adder, x, y = HostAdder(), random(), random()
    a, b = Sum.of(adder, x), Sum.of(adder, y)
    found = np.float32(2) * a - b * np.float64(0.5) + (a + b) / 4 - (-a)
    assert isinstance(found, Sum) and adder.adds == 0
    assert close(found, 2 * x - 0.5 * y + (x + y) / 4 + x) and adder.adds == 1
    assert found.computed() is found and adder.adds == 1  # once
    assert close(a, x) and adder.adds == 1  # an array is one already
    assert zeros_like(a).l2 == 0 and (zeros_like(x) == 0).all() and as_float32(a) is a
    assert computed(x) is x and (a - a).l2 == 0
    with pytest.raises(ValueError, match="differ in shape"):
        a + Sum.of(adder, x[:1])
    with pytest.raises(TypeError):
        a + cast(Any, x)
    with pytest.raises(TypeError):
        a * b


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_seen(value: float) -> None:
    bad = random()
    bad[0, 0, 0, 0] = value
    adder = HostAdder()
    assert is_finite(random()) and not is_finite(bad)
    assert is_finite(Sum.of(adder, random())) and not is_finite(Sum.of(adder, bad))


@pytest.mark.parametrize("name", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
def test_a_run_is_the_hosts(name: str, prediction: str) -> None:
    scheduler = scheduler_from_config(
        {"_class_name": name, "prediction_type": prediction, "timestep_spacing": "trailing"}
    )
    host, device = (scheduler.begin(5, np.random.default_rng(7)) for _ in range(2))
    adder, x = HostAdder(), random()
    device.on_device(adder, SHAPE)
    puts, y = adder.puts, Sum.of(adder, x)
    assert puts == 5 * scheduler.adds_noise  # all noise is there before the first step
    for i in range(5):
        halves = random(), random()
        velocity = combine(*halves, 6.0)
        sums = [cast(Any, Sum.of(adder, half)) for half in halves]
        on_device = combine(sums[0], sums[1], 6.0)
        assert close(device.clean(i, on_device, cast(Any, y)), host.clean(i, velocity, x))
        if i == 2:  # as a schedule goes on from a forecast
            clean = random()
            x, y = (
                host.toward(i, x).to(clean),
                cast(Any, device.toward(i, cast(Any, y)).to(cast(Any, Sum.of(adder, clean)))),
            )
        else:
            x, y = host.step(i, velocity, x), cast(Any, device.step(i, on_device, cast(Any, y)))
        y = y.computed()
        assert close(y, x), i


def test_a_forecast_is_the_hosts() -> None:
    arrays, adder = [random() for _ in range(5)], HostAdder()
    coefficients = [0.5, -1.25, 3.0, 0.0, 1e-3]
    found = weighted(coefficients, [cast(Any, Sum.of(adder, each)) for each in arrays])
    assert close(found, weighted(coefficients, arrays))
