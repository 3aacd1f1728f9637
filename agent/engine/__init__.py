"""Training engines: the only package that imports onnx or onnxruntime."""
