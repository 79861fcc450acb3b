"""ONNX operators in other frameworks: one small function each, listed in a table a framework.

    graph.py         an ONNX file as plain nodes; which operators a table lacks
    functions.py     calls of functions replaced by their bodies
    narrow.py        4-bit integers and 8-bit floats held in types that frameworks compute on
    table.py         operator name and version -> function
    shapes.py        arithmetic on shapes, the same for every framework
    sequences.py     sequences as lists, the same for every framework
    interpreter.py   walks the nodes, calling the table
    composed/        operators made of a framework's functions, described once: quantised ones, ONNX Runtime's own
    pytorch/         the PyTorch table
    tensorflow/      the TensorFlow table

A function takes the operator's inputs in order and its attributes by name, so that what ONNX moved from an attribute to an
input (axes, min, max, split) stays one function. A missing optional input is None.
"""
