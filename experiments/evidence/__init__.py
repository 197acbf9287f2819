"""When the relation term helps, and what helps more: the protocol is in PROTOCOL.md."""
