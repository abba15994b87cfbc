"""The continuous-batching engine in plain Python: one turn of a loop per iteration, real blocks.

This is the text that `modelium.sim.kernel.generate` must equal to the bit. It shares nothing with
it but the specification of the engine, and knows no spans: `step` runs exactly one iteration.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from modelium.sim.spec import Generate

NEVER = 2**63 - 1


@dataclass(eq=False)
class Sequence:
    """A request: what it asks for, and how far it is."""

    id: int
    prompt: int
    output: int
    prefix: int = -1
    prefix_tokens: int = 0
    known_hit: int = 0

    computed: int = 0
    """Tokens in the KV cache."""
    emitted: int = 0
    goal: int = 0
    """Tokens known when it was admitted: it prefills until those are computed."""
    blocks: list[Block] = field(default_factory=list)
    running: bool = False
    first_ps: int = -1
    finish_ps: int = -1
    token_ps: list[int] = field(default_factory=list)
    """When each token came."""
    preemptions: int = 0
    cached: int = -1

    @property
    def known(self) -> int:
        """Prompt and output so far: what the next iterations can compute."""
        return self.prompt + self.emitted

    @property
    def decodes(self) -> bool:
        return self.computed >= self.goal


@dataclass(eq=False)
class Block:
    """One KV block; when free, it may still hold the `index`-th full block of `owner`."""

    owner: Sequence | None = None
    index: int = 0


class ReferenceEngine:
    """One engine. Call `step` at `due_ps`, after all else that happens at that instant."""

    def __init__(self, spec: Generate) -> None:
        self.spec = spec
        self.slow = 1024
        self.due_ps = NEVER
        self.start_ps = 0
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.chunks: dict[Sequence, int] = {}
        """The iteration in flight: tokens that each sequence computes in it."""
        self.free: list[Block] = []
        """Longest unused first."""
        self.last_with: dict[int, Sequence] = {}
        """By prefix: who was admitted with it last."""
        self.busy_ps = self.tokens = self.kv_token_ps = 0
        self._empty()

    def _empty(self) -> None:
        self.due_ps = NEVER
        self.running, self.waiting, self.chunks, self.last_with = [], deque(), {}, {}
        self.free = [Block() for _ in range(self.spec.kv_tokens // self.spec.block_tokens)]

    # What happens to it

    def put(self, seq: Sequence, now: int) -> None:
        self.waiting.append(seq)
        if not self.chunks:
            self.due_ps = min(self.due_ps, now)

    def set_slow(self, factor: int) -> None:
        self.slow = factor

    def drop(self) -> list[Sequence]:
        lost = [*self.running, *self.waiting]
        for seq in lost:
            seq.computed = seq.emitted = seq.goal = 0
            seq.first_ps = -1
            seq.token_ps = []
            seq.blocks, seq.running = [], False
        self._empty()
        return lost

    def step(self) -> list[Sequence]:
        now = self.due_ps
        done = self._end_iteration(now)
        self.chunks = {}
        if not self._continue_running():
            self._admit_waiting()
        self.start_ps = now
        self.due_ps = now + self._iteration_ps() if self.chunks else NEVER
        return done

    # What can be read

    def kv_tokens(self) -> int:
        return sum(seq.computed + self.chunks.get(seq, 0) for seq in self.running)

    def busy_ps_at(self, now: int) -> int:
        return self.busy_ps + (now - self.start_ps if self.chunks else 0)

    def backlog_tokens(self) -> int:
        everybody = [*self.running, *self.waiting]
        total = sum(seq.prompt + max(seq.output, 1) - 1 for seq in everybody)
        return total - self.kv_tokens()

    # One iteration

    def _end_iteration(self, now: int) -> list[Sequence]:
        elapsed = now - self.start_ps
        if self.chunks:
            self.busy_ps += elapsed
            self.tokens += sum(self.chunks.values())
            self.kv_token_ps += self.kv_tokens() * elapsed
        done = []
        for seq, chunk in self.chunks.items():
            seq.computed += chunk
            if seq.computed < seq.known:
                continue
            seq.emitted += 1
            seq.token_ps.append(now)
            if seq.first_ps < 0:
                seq.first_ps = now
            if seq.emitted >= seq.output:
                seq.finish_ps = now
                done.append(seq)
        for seq in done:
            self.running.remove(seq)
            self._release(seq)
        return done

    def _continue_running(self) -> bool:
        preempted = False
        budget = self.spec.max_batched_tokens
        i = 0
        while i < len(self.running) and budget > 0:
            seq = self.running[i]
            chunk = min(seq.known - seq.computed, budget)
            need = self._blocks_for(seq.computed + chunk) - len(seq.blocks)
            while need > len(self.free) and seq.running:
                self._preempt(self.running[-1])
                preempted = True
            if not seq.running:
                break
            seq.blocks += self._use(need)
            self.chunks[seq] = chunk
            budget -= chunk
            i += 1
        return preempted

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._release(seq)
        self.waiting.appendleft(seq)
        seq.computed = 0
        seq.preemptions += 1

    def _admit_waiting(self) -> None:
        budget = self.spec.max_batched_tokens - sum(self.chunks.values())
        while self.waiting and len(self.running) < self.spec.max_num_seqs and budget > 0:
            seq = self.waiting[0]
            watermark = self.spec.watermark_blocks if self.running else 0
            if self._blocks_for(seq.known) > len(self.free) - watermark:
                break
            self.waiting.popleft()
            seq.blocks = self._find_cached(seq)
            hit = self._hit * self.spec.block_tokens
            chunk = min(seq.known - hit, budget)
            seq.blocks += self._use(self._blocks_for(hit + chunk) - len(seq.blocks))
            seq.computed = hit
            seq.goal = seq.known
            seq.running = True
            if seq.cached < 0:
                seq.cached = hit
            if seq.prefix >= 0:
                self.last_with[seq.prefix] = seq
            self.running.append(seq)
            self.chunks[seq] = chunk
            budget -= chunk

    def _iteration_ps(self) -> int:
        step = self.spec.step
        decoding = [seq for seq in self.running if seq.decodes]
        prefilling = [seq for seq in self.running if seq in self.chunks and not seq.decodes]
        d, s = len(decoding), len(prefilling)
        k = sum(seq.computed + 1 for seq in decoding)
        t = sum(self.chunks.values())
        if not prefilling:
            base = _hinge(step.decode_c, step.decode_lo, step.decode_hi, step.decode_hinge, d)
            base += sum(_ps(change) * max(d - at, 0) for at, change in step.decode_bends)
            return (base * self.slow >> 10) + (_ps(step.decode_kv) * self.slow >> 10) * k
        time = _hinge(step.mixed_c, step.mixed_lo, step.mixed_hi, step.mixed_hinge, t)
        time += _ps(step.mixed_decode) * d + _ps(step.mixed_prefill) * s + _ps(step.mixed_kv) * k
        for seq in prefilling:
            chunk = self.chunks[seq]
            time += _ps(step.mixed_ctx) * chunk * seq.computed + _ps(step.mixed_sq) * chunk * chunk
        return time * self.slow >> 10

    # Blocks

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.spec.block_tokens)

    def _use(self, n: int) -> list[Block]:
        used, self.free = self.free[:n], self.free[n:]
        assert len(used) == n
        for block in used:
            block.owner = None
        return used

    def _release(self, seq: Sequence) -> None:
        """Free blocks keep what fills them; the last of the sequence will be reused first."""
        for index, block in reversed(list(enumerate(seq.blocks))):
            full = (index + 1) * self.spec.block_tokens <= seq.computed
            keeps = full and self.spec.prefix_caching
            block.owner, block.index = (seq if keeps else None), index
            self.free.append(block)
        seq.blocks, seq.running = [], False

    def _find_cached(self, seq: Sequence) -> list[Block]:
        """Take over the free blocks that begin `seq`; `_hit` counts those that others hold too."""
        self._hit = 0
        if not self.spec.prefix_caching:
            return []
        size, most = self.spec.block_tokens, seq.known - 1
        source = self._free_blocks_of(seq)[: most // size]
        self._hit = len(source)
        if seq.prefix < 0:
            if min(seq.known_hit, most) // size > self._hit:
                source, self._hit = [], min(seq.known_hit, most) // size
        elif (other := self.last_with.get(seq.prefix)) is not None and other is not seq:
            theirs = self._free_blocks_of(other)
            there = len(theirs) * size
            if other.running:
                there = min(other.goal, other.computed + self.chunks.get(other, 0))
            shared = min(there, seq.prefix_tokens, most) // size
            if shared > self._hit:
                source, self._hit = ([] if other.running else theirs[:shared]), shared
        self.free = [block for block in self.free if block not in source]
        # What the sequence left behind earlier and does not use is worth nothing: reused first.
        mine = [block for block in self.free if block.owner is seq]
        rest = [block for block in self.free if block.owner is not seq]
        for block in [*source, *mine]:
            block.owner = None
        self.free = mine + rest
        return source

    def _free_blocks_of(self, seq: Sequence) -> list[Block]:
        """Its full blocks that are free and unspoilt, from the first on without a gap."""
        kept = {block.index: block for block in self.free if block.owner is seq}
        found: list[Block] = []
        while len(found) in kept:
            found.append(kept[len(found)])
        return found


def _ps(seconds: float) -> int:
    return round(seconds * 1e12)


def _hinge(c: float, lo: float, hi: float, hinge: int, x: int) -> int:
    return _ps(c) + _ps(lo) * min(x, hinge) + _ps(hi) * max(x - hinge, 0)
