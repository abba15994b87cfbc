"""What the shape of a transformer says: parameters, KV bytes per token, FLOPs per token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The shape of a transformer; zero means that the model has no such part.

    Norms and biases are left out of the counts (under 1 % of any model in the catalogue).
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    """Of queries and keys; with multi-head latent attention (MLA) the rotary part is in it."""
    intermediate: int
    """Width of a dense feed-forward block."""
    vocab: int
    max_context: int
    tied_embeddings: bool = False
    """The output head is the embedding table."""
    gated_mlp: bool = True
    """Feed-forward blocks of three matrices (SwiGLU) rather than two."""
    causal: bool = True
    """Generates token by token and so keeps keys and values; False for encoders."""
    experts: int = 0
    active_experts: int = 0
    """Routed experts that work on one token."""
    expert_intermediate: int = 0
    shared_experts: int = 0
    """Experts that work on every token, counted in widths of `expert_intermediate`."""
    dense_layers: int = 0
    """Layers of a mixture of experts that have a plain feed-forward block instead."""
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    """Width of MLA's compressed keys and values (DeepSeek-V2, arXiv 2405.04434)."""
    rope_head_dim: int = 0
    v_head_dim: int = 0
    sliding_window: int = 0
    """Tokens that the sliding-window layers look back."""
    sliding_layers: int = 0
    recurrent_layers: int = 0
    """Layers with a state of fixed size (Mamba, linear attention) and no keys and values."""

    @property
    def counted_params(self) -> int:
        """Parameters that follow from the shape."""
        return self._outside + self._attention + self._mlps(self.experts)

    @property
    def counted_active_params(self) -> int:
        """Parameters that work on one token: all but the routed experts not chosen."""
        return self._outside + self._attention + self._mlps(self.active_experts)

    @property
    def flops_per_token(self) -> int:
        """Matrix multiplications for one token, attention over its context not included.

        Two per active parameter, the look-up in the embedding table excepted.
        """
        tables = self._outside if not self.causal else self.vocab * self.hidden
        looked_up = 0 if self.tied_embeddings else tables
        return 2 * (self.counted_active_params - looked_up)

    @property
    def attention_flops_per_context_token(self) -> int:
        """Attention of one token to one token of its context: scores and weighted values."""
        return 2 * self.layers * self.heads * (self.head_dim + (self.v_head_dim or self.head_dim))

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token leaves in the KV cache, as long as no window drops it.

        `2 * layers * kv_heads * head_dim`; with MLA `layers * (compressed + rotary width)`.
        """
        return (self.layers - self.recurrent_layers) * self._kv_values_per_layer

    def kv_values(self, tokens: int) -> int:
        """Numbers in the KV cache of one sequence of `tokens`; windows bound their layers."""
        if not self.sliding_layers:
            return tokens * self.kv_values_per_token
        full = self.layers - self.recurrent_layers - self.sliding_layers
        kept = min(tokens, self.sliding_window)
        return (full * tokens + self.sliding_layers * kept) * self._kv_values_per_layer

    def kv_copies(self, gpus: int) -> int:
        """How often `gpus` tensor-parallel GPUs keep each number of the KV cache.

        Heads are dealt out, and repeated where they do not suffice; MLA's latent is on every GPU.
        """
        return gpus if self.kv_lora_rank else max(1, gpus // self.kv_heads)

    def tensor_parallel_sizes(self, most: int = 8) -> tuple[int, ...]:
        """Powers of two up to `most` that divide the heads (KV heads may be replicated)."""
        powers = (1 << n for n in range(most.bit_length()) if 1 << n <= most)
        return tuple(size for size in powers if self.heads % size == 0)

    @property
    def _kv_values_per_layer(self) -> int:
        if not self.causal:
            return 0
        if self.kv_lora_rank:
            return self.kv_lora_rank + self.rope_head_dim
        return 2 * self.kv_heads * self.head_dim

    @property
    def _outside(self) -> int:
        if not self.causal:  # no output head, but learned positions
            return (self.vocab + self.max_context) * self.hidden
        return (1 if self.tied_embeddings else 2) * self.vocab * self.hidden

    @property
    def _attention(self) -> int:
        if self.kv_lora_rank:
            return self.layers * self._mla
        return self.layers * self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def _mla(self) -> int:
        queries, values = self.heads * self.head_dim, self.heads * self.v_head_dim
        keys = self.heads * (self.head_dim - self.rope_head_dim)
        ask = self.hidden * queries
        if self.q_lora_rank:
            ask = self.q_lora_rank * (self.hidden + queries)
        compress = self.hidden * (self.kv_lora_rank + self.rope_head_dim)
        expand = self.kv_lora_rank * (keys + values)
        return ask + compress + expand + values * self.hidden

    def _mlps(self, experts: int) -> int:
        matrices = 3 if self.gated_mlp else 2
        if not self.experts:
            return self.layers * matrices * self.hidden * self.intermediate
        sparse = self.layers - self.dense_layers
        width = (experts + self.shared_experts) * self.expert_intermediate
        router = self.experts * self.hidden
        dense = self.dense_layers * matrices * self.hidden * self.intermediate
        return dense + sparse * (matrices * self.hidden * width + router)
