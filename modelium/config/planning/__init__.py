"""From a configuration to what is simulated or served."""
