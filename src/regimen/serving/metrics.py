"""Counters of a model server in Prometheus' text format."""

from __future__ import annotations

from collections import Counter

_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Requests by route and status, tokens, seconds, and what is under way."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.num_running = 0
        self.num_updates = 0
        self._buckets = [0] * len(_BUCKETS)
        self._seconds = 0.0
        self._count = 0

    def finish(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests[route, status] += 1
        self._seconds += seconds
        self._count += 1
        for index, bound in enumerate(_BUCKETS):
            self._buckets[index] += seconds <= bound

    def text(self, weight_version: int) -> str:
        """All of it, one sample a line."""
        lines = ["# TYPE regimen_requests_total counter"]
        for (route, status), number in sorted(self.requests.items()):
            lines.append(f'regimen_requests_total{{route="{route}",status="{status}"}} {number}')
        single = {
            "prompt_tokens_total": ("counter", self.prompt_tokens),
            "generated_tokens_total": ("counter", self.generated_tokens),
            "weight_updates_total": ("counter", self.num_updates),
            "requests_running": ("gauge", self.num_running),
            "weight_version": ("gauge", weight_version),
        }
        for name, (kind, value) in single.items():
            lines += [f"# TYPE regimen_{name} {kind}", f"regimen_{name} {value}"]
        lines.append("# TYPE regimen_request_seconds histogram")
        for bound, number in zip(_BUCKETS, self._buckets, strict=True):
            lines.append(f'regimen_request_seconds_bucket{{le="{bound:g}"}} {number}')
        lines.append(f'regimen_request_seconds_bucket{{le="+Inf"}} {self._count}')
        lines += [f"regimen_request_seconds_sum {self._seconds:.6f}", f"regimen_request_seconds_count {self._count}"]
        return "\n".join(lines) + "\n"
