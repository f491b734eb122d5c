"""onnxopt: optimizes ONNX models and checks the result in ONNX Runtime."""
