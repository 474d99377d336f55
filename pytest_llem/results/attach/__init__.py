"""`llem attach` measures any command's run as a cycle is measured; `llem import` joins other tools' results to it."""
