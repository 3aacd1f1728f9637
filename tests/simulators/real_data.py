"""Published models and data that are too large to keep here: some tests use them where a folder is given.

`TEMPERD_TEST_DATA` names it: `mobilenetv2-1.0-224.onnx` and `efficientnet-lite0-224.onnx` of the ONNX model zoo, and
`flowers5-96.npz`, photographs of five flowers (`x_train`, `y_train`, ...) at 96 pixels.
"""

import os
from pathlib import Path

REAL_DATA = Path(os.environ.get("TEMPERD_TEST_DATA", "missing"))
MOBILENET = REAL_DATA / "mobilenetv2-1.0-224.onnx"
FLOWERS = REAL_DATA / "flowers5-96.npz"
