"""Models as replicas of Ray Serve: language models of transformers, and users' own classes."""
