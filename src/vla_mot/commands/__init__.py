"""The `vla-mot` command: Hydra configurations in, frozen dataclasses to the library, answers for people."""
