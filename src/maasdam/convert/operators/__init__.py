"""ONNX operators in other frameworks: one small function each, its head written once, with kernels a framework.

    nodes.py         a graph as plain nodes
    graph.py         an ONNX file as such a graph; which operators the table lacks
    functions.py     calls of functions replaced by their bodies
    narrow.py        4-bit integers and 8-bit floats held in types that frameworks compute on
    table.py         operator name and version -> function
    onnx/            every operator: name, versions, parameters, weights, and what it computes
    arrays.py        what operators compute with: a framework's functions under one set of names
    pytorch/         PyTorch's functions, and kernels where it goes its own way
    tensorflow/      TensorFlow's
    shapes.py        arithmetic on shapes, the same for every framework
    interpreter.py   walks the nodes, calling the table

An operator's function takes a framework's `Arrays`, then the operator's inputs in order and its attributes by name, so that
what ONNX moved from an attribute to an input (axes, min, max, split) stays one function. A missing optional input is None.
"""
