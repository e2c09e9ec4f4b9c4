"""What happens inside machines: first boot, the guest agent, SSH sessions, copies. No provider is known here."""
