"""Models as ONNX graphs: encoders, and one step of decoding with its state as inputs and outputs."""
