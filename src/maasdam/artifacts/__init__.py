"""Models at rest: recognise and open a source, keep its bytes, name its versions."""
