"""Several processes that are one service: a supervisor that loads no engine, and the workers it keeps."""
