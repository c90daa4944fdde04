"""The files that `regimen init` writes, with `@name@` and `@class@` where the name of the environment goes."""
