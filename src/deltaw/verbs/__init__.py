"""One verb of the command a module, named as the command; each is a plain function of a library."""
