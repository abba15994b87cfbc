"""Continuous batching in real time: what the simulator computes, on a clock.

As vLLM V1 in simple form: running sequences first, then the waiting, first come first served;
prompts in chunks within the token budget; KV blocks, with preemption of the last by recompute.
Steps end at absolute times, so that a late timer delays a token but not the ones after it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from modelium.managers.emulated.server.spec import Generate

TIMER_S = 1e-3
"""Resolution of the event loop's timers."""
LAG_S = 0.1
"""A process that was held up for longer goes on from then, and does not catch up."""


class Sequence:
    """One prompt and the tokens to make for it."""

    __slots__ = (
        "blocks", "chunk", "computed", "emit", "emitted", "goal", "output", "prompt", "running",
    )  # fmt: skip

    def __init__(self, prompt: int, output: int, emit: Callable[[bool], None]) -> None:
        self.prompt = prompt
        self.output = output
        self.emit = emit
        """Called for each token; True with the last one."""
        self.emitted = self.computed = self.chunk = self.blocks = 0
        self.goal = prompt
        """Tokens known when it was admitted: it prefills until those are computed."""
        self.running = False


class Batcher:
    """One engine: sequences in, tokens out, at the pace of its profile."""

    def __init__(
        self,
        spec: Generate,
        speed: float,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.free_blocks = self.blocks = spec.kv_tokens // spec.block_tokens
        self.prompt_tokens = self.output_tokens = self.finished = self.preemptions = 0
        self.paused = False
        self.ended: Callable[[], None] = lambda: None
        """Called after each step; it may pause."""
        self._speed, self._loop, self._clock = speed, loop, clock
        self._timer: asyncio.Handle | None = None
        self._due_s = 0.0

    def put(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit the KV pool."""
        self.waiting.append(sequence)
        self._go_on()

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence that nobody waits for any more."""
        if sequence.running:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def pause(self, *, forget: bool) -> None:
        """Stop making tokens; with `forget` the KV pool is lost and will be computed again."""
        self.paused = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if forget:
            for sequence in reversed(self.running):
                self._requeue(sequence)
            self.running.clear()

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        self._go_on()

    def _go_on(self) -> None:
        if self._timer is None and not self.paused:
            self._due_s = self._clock()
            self._timer = self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        """Plan a step after a time with none under way."""
        for sequence in self.running:
            sequence.chunk = 0
        self._next_step()

    def _turn(self) -> None:
        self._end_step()
        self.ended()
        if not self.paused:
            self._next_step()

    def _next_step(self) -> None:
        now_s = self._clock()
        if (step_s := self._plan()) is None:
            self._timer = None
            return
        self._due_s = max(self._due_s + step_s / self._speed, now_s - LAG_S)
        if (wait_s := self._due_s - now_s) > 0:
            whole_s = math.ceil(wait_s / TIMER_S) * TIMER_S
            self._timer = self._loop.call_later(whole_s, self._turn)
        else:
            self._timer = self._loop.call_soon(self._turn)

    def _end_step(self) -> None:
        done = []
        for sequence in list(self.running):
            if not sequence.chunk or not sequence.running:
                continue
            sequence.computed += sequence.chunk
            sequence.chunk = 0
            if sequence.computed < sequence.prompt + sequence.emitted:
                continue
            sequence.emitted += 1
            self.output_tokens += 1
            last = sequence.emitted >= sequence.output
            if last:
                done.append(sequence)
            sequence.emit(last)
        for sequence in done:
            if sequence.running:
                self.finished += 1
                self.running.remove(sequence)
                self._release(sequence)

    def _plan(self) -> float | None:
        """Choose what the next step computes; return its seconds, None if there is nothing."""
        budget, preempted = self._continue_running()
        if not preempted and self.waiting:
            self._admit(budget)
        decoding = context = tokens = 0
        chunks = []
        for sequence in self.running:
            if sequence.chunk and sequence.computed >= sequence.goal:
                decoding += 1
                context += sequence.computed + 1
            elif sequence.chunk:
                chunks.append((sequence.chunk, sequence.computed))
            tokens += sequence.chunk
        if not tokens:
            return None
        step = self.spec.step
        if chunks:
            return step.mixed_s(tokens, decoding, context, chunks)
        return step.decode_s(decoding, context)

    def _continue_running(self) -> tuple[int, bool]:
        budget, preempted, size = self.spec.max_batched_tokens, False, self.spec.block_tokens
        i = 0
        while i < len(self.running) and budget > 0:
            sequence = self.running[i]
            chunk = min(sequence.prompt + sequence.emitted - sequence.computed, budget)
            need = -(-(sequence.computed + chunk) // size) - sequence.blocks
            while need > self.free_blocks and sequence.running:
                self._requeue(self.running.pop())
                self.preemptions += 1
                preempted = True
            if not sequence.running:
                break
            sequence.blocks += need
            self.free_blocks -= need
            sequence.chunk = chunk
            budget -= chunk
            i += 1
        return budget, preempted

    def _admit(self, budget: int) -> None:
        size = self.spec.block_tokens
        while self.waiting and len(self.running) < self.spec.max_num_seqs and budget > 0:
            sequence = self.waiting[0]
            known = sequence.prompt + sequence.emitted
            kept = self.spec.watermark_blocks if self.running else 0
            if -(-known // size) > self.free_blocks - kept:
                return
            self.waiting.popleft()
            sequence.chunk = min(known, budget)
            sequence.blocks = -(-sequence.chunk // size)
            self.free_blocks -= sequence.blocks
            sequence.running = True
            sequence.goal = known
            self.running.append(sequence)
            if not sequence.emitted:
                self.prompt_tokens += sequence.prompt
            budget -= sequence.chunk

    def _requeue(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.computed = sequence.chunk = 0
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.free_blocks += sequence.blocks
        sequence.blocks = 0
        sequence.running = False
