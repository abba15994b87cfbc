"""What both worlds share: state, rules, costs, the memory ledger, the channel to a policy."""
