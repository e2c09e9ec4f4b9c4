"""Back ends that make machines. `base` is the contract, `discovery` finds them."""
