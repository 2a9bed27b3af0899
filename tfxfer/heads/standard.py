"""Features brought to mean 0 and deviation 1 for a solver, and back in the weights it finds."""

from dataclasses import dataclass

import keras
import numpy as np


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of each feature, float64 `[d]`; 1 where it is constant."""

    mean: np.ndarray
    spread: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Returns features `[n, d]` standardised, float64, the one copy that is made."""
        z = x - self.mean
        z /= self.spread
        return z

    def dense(self, kernel: np.ndarray, bias: np.ndarray) -> keras.layers.Dense:
        """Returns a layer that does to features what weights do to standardised ones.

        Args:
            kernel: `[d, units]`.
            bias: `[units]`.
        """
        kernel = kernel / self.spread[:, None]
        layer = keras.layers.Dense(len(bias), name="head", dtype="float32")
        layer.build((None, len(kernel)))
        layer.set_weights([kernel, bias - self.mean @ kernel])
        return layer


def standardised(x: np.ndarray) -> tuple[np.ndarray, Standard]:
    """Returns features `[n, d]` standardised by themselves, float64, and by what."""
    mean = x.mean(axis=0, dtype=np.float64)
    z = x - mean
    spread = np.sqrt(np.einsum("nd,nd->d", z, z) / len(z))
    # What is left of a constant in float32 is no feature to blow up.
    spread = np.where(spread > 1e-6 * np.abs(mean), spread, 1.0)
    z /= spread
    return z, Standard(mean, spread)
