"""Forward and backward of packs in one process: milliseconds, FLOPs, memory beside the estimate, a profile.

python -m benchmarks.offline.passes OUT_FOLDER [SHAPE/TRAIN[/kernels] ...]     such as 1.5b/full/kernels
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from alignment_lab import estimate
from alignment_lab.engine.layout import Engine, ForwardBatch
from alignment_lab.engine.logprobs import token_logprobs
from alignment_lab.engine.packing import ScoredSequence
from alignment_lab.models import packed_attention
from alignment_lab.models.fused.choice import use_kernels
from alignment_lab.models.fused.patch import techniques_of
from benchmarks.gpu import make_rows
from benchmarks.shapes import SHAPES, adapter, build, step_flops

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
CASES = (
    ("8b/lora", "8b/lora/kernels", "1.5b/full", "1.5b/full/kernels")
    if CUDA
    else ("tiny/full", "tiny/lora", "tiny/lora/kernels")
)
PACKS = 4  # timed
LONGEST = 4096
RETRY = 0.7  # of the planned tokens, after a pass ran out of memory
CALLS = [
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "aten::_local_scalar_dense",
    "cudaMemcpyAsync",
    "cudaLaunchKernel",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cudaLaunchKernelExC",
]


class Autocast:
    """A model as accelerate wraps it: autocast around it, logits in float32."""

    def __init__(self, model: Any) -> None:
        self.module = model

    def __call__(self, **inputs: Any) -> Any:
        """The forward pass."""
        with torch.autocast("cuda", dtype=torch.bfloat16) if CUDA else contextlib.nullcontext():
            output = self.module(**inputs)
        output.logits = output.logits.float()
        return output


class Passes:
    """The passes of one shape and way of training; `note` writes a line for each figure."""

    def __init__(self, out: Path, case: str, shrink: float = 1.0) -> None:
        self.out, self.case = out, case
        self.shape, self.train, *kernels = case.split("/")
        self.kernels = bool(kernels)
        self.lora = self.train == "lora"
        self._clear()
        began = time.perf_counter()
        self.model = self._build()
        _wait()
        built = time.perf_counter() - began
        if self.kernels:
            dtype = torch.bfloat16 if CUDA else torch.float32
            print(case, use_kernels(self.model, torch.device(DEVICE), dtype), techniques_of(self.model))
        self.plan, free = self._plan()
        self.tokens = max(256, int(self.plan.tokens * shrink)) if CUDA else 512
        if self.plan.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        pairs = make_rows(64 if CUDA else 4, 2048 if CUDA else 64)
        sequences = [
            ScoredSequence(row["prompt_ids"], row[answer])
            for row in pairs
            for answer in ("chosen_ids", "rejected_ids")
        ]
        began = time.perf_counter()
        self.batches = Engine(True, self.tokens, device=torch.device(DEVICE)).batches(sequences)
        laid_out = time.perf_counter() - began
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=CUDA)
        self.wrapped = Autocast(self.model)
        self.head = {
            "tokens_a_pass": self.tokens,
            "estimated": self.plan.tokens,
            "checkpointing": self.plan.checkpointing,
            "packs_of_64_pairs": len(self.batches),
            "built_s": round(built, 1),
            "layout_ms": round(laid_out * 1e3),
            "free_gb": round(free / 1e9, 1),
        }

    def run(self) -> None:
        """Time the passes and the optimizer, profile one pass, and count what waits for the device."""
        for number, batch in enumerate(self.batches[:PACKS]):
            self._time_pass(number, batch)
        self._time_optimizer()
        self._profile(self.batches[min(1, len(self.batches) - 1)])

    def note(self, **facts: Any) -> None:
        """Append one line to passes.jsonl, and print it."""
        line = json.dumps({"shape": self.shape, "train": self.train, "kernels": self.kernels, **facts})
        print(line, flush=True)
        with (self.out / "passes.jsonl").open("a") as file:
            file.write(line + "\n")

    def _build(self) -> Any:
        dtype = torch.bfloat16 if self.lora and CUDA else torch.float32
        model = build(f"shape-{self.shape}", DEVICE, dtype, packed_attention.SHARED_PREFIX)
        if self.lora:
            from peft import get_peft_model

            model = get_peft_model(model, adapter(16))
        return model.train()

    def _plan(self) -> tuple[estimate.MicroBatchPlan, int]:
        trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        free = torch.cuda.mem_get_info()[0] if CUDA else 8 * 10**9
        plan = estimate.plan_micro_batch(
            self.model.config,
            trained=trained,
            dtype_bytes=2 if CUDA else 4,
            free_bytes=free,
            longest_row=LONGEST,
            cuda=CUDA,
            tokens=None,
            checkpointing=None,
        )
        return plan, free

    def _time_pass(self, number: int, batch: ForwardBatch) -> None:
        assert batch.layout is not None
        lengths = [(prompt, *answers) for prompt, answers in batch.layout.trees]
        flops = step_flops(SHAPES[f"shape-{self.shape}"], lengths, shared=True, lora=self.lora)  # type: ignore[arg-type]
        forward, backward = self._forward_backward(batch)
        rate, ceiling = flops / (forward + backward) / 1e12, self._ceiling()
        self.note(
            **self.head,
            **{"pass": number},
            tokens=batch.input_ids.numel(),
            scored=len(batch.predict_at),
            forward_ms=round(forward * 1e3, 1),
            backward_ms=round(backward * 1e3, 1),
            tflop_s=round(rate, 1),
            of_ceiling=ceiling and round(rate / ceiling, 3),
            **_peaks(),
        )

    def _forward_backward(self, batch: ForwardBatch) -> tuple[float, float]:
        _wait()
        began = time.perf_counter()
        loss = self._loss(batch)
        _wait()
        between = time.perf_counter()
        loss.backward()
        _wait()
        return between - began, time.perf_counter() - between

    def _loss(self, batch: ForwardBatch) -> torch.Tensor:
        outputs = token_logprobs(self.wrapped, batch.to(DEVICE))  # type: ignore[arg-type]
        return outputs.sum_by_sequence(outputs.logps).sum() / 1000

    def _time_optimizer(self) -> None:
        seconds = []
        for _ in range(2):
            _wait()
            began = time.perf_counter()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            _wait()
            seconds.append(time.perf_counter() - began)
        self.note(optimizer_ms=round(min(seconds) * 1e3, 1), **_peaks())

    def _profile(self, batch: ForwardBatch) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] * CUDA)
        with torch.profiler.profile(activities=kinds) as profile:
            self._forward_backward(batch)
        events = profile.key_averages()
        table = events.table(
            sort_by="self_cuda_time_total" if CUDA else "self_cpu_time_total",
            row_limit=40,
            max_name_column_width=70,
        )
        with (self.out / "profile.txt").open("a") as file:
            file.write(f"\n===== {self.case}, one pass\n{table}\n")
        calls = {event.key: event.count for event in events if event.key in CALLS}
        self.note(calls_of_a_pass=calls, waits_by_line=self._waits(batch))

    def _waits(self, batch: ForwardBatch) -> dict[str, int]:
        """Where a pass waits for the device, by line of the code; torch says so itself."""
        if not CUDA:
            return {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self._loss(batch).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        lines = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
        return dict(Counter(lines))

    def _ceiling(self) -> float | None:
        file = self.out / "ceilings.json"
        return json.loads(file.read_text())["bf16 8192^3"]["tflop_s"] if file.exists() else None

    @staticmethod
    def _clear() -> None:
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def _peaks() -> dict[str, float]:
    if not CUDA:
        return {}
    return {
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
    }


def run_case(out: Path, case: str, shrink: float = 1.0) -> bool:
    """Whether it ended; an error is noted and does not end the others."""
    passes = None
    try:
        passes = Passes(out, case, shrink)
        passes.run()
    except torch.OutOfMemoryError as error:
        print(f"{case}: out of memory: {str(error)[:200]}", flush=True)
        if passes:
            passes.note(**passes.head, out_of_memory=True)
        return False
    except Exception as error:
        traceback.print_exc()
        with (out / "passes.jsonl").open("a") as file:
            file.write(json.dumps({"case": case, "failed": repr(error)[:300]}) + "\n")
    return True


def main() -> None:
    """Every case, with fewer tokens where the planned ones do not fit."""
    out = Path(sys.argv[1])
    packed_attention.register()
    for name in ("passes.jsonl", "profile.txt"):
        (out / name).write_text("")
    for case in sys.argv[2:] or CASES:
        if not run_case(out, case):
            run_case(out, case, RETRY)


if __name__ == "__main__":
    main()
