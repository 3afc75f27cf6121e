"""The arrays that pass between reading and transforming."""

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]  # images (H, W, 3) RGB, masks (H, W)
FloatArray = npt.NDArray[np.float32]
