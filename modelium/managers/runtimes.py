"""What the runtimes can do; known without any of them, and so in simulations as well."""

CAN_SLEEP = ("vllm", "emulated")
"""Those that can put their engines to sleep."""
SHARED_SERVER = ("triton", "ray")
"""Those whose engines are parts of one server, which keeps what it was started with itself."""
