"""The commands of ``moe-contracts``: each module has one, called ``command``, and is loaded when it is asked for."""
